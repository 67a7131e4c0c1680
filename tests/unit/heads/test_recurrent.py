"""MLP and LSTM speculators by their published names, against a forward of our own."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtp_verify as mv
from mtp_verify.heads import load, probe, save
from tests.heads import random_hidden
from tests.models import VOCAB, prompt, tiny_model
from tests.published import write

D, INNER, LEVELS = 32, 24, 3


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def rms(x):
    return x / torch.sqrt((x * x).mean() + 1e-6)


class Published:
    """Random tensors by the names of one of the releases."""

    def __init__(self, folder, kind, *, tied=False, scale=False, keeps=True):
        torch.manual_seed(8)
        self.kind, self.tied, self.scale = kind, tied, scale
        self.tensors = {}
        start = "speculator." if kind == "ibm" else ""
        infix = ".0" if kind == "arctic" else ""
        gates = 4 if kind == "lstm" else 1
        self.parts = {"token": "emb", "state": "proj", "norm": "ln", "head": "head"}
        if kind == "lstm":
            self.parts |= {"token": "forget_emb", "state": "projs", "norm": "state_ln",
                           "cell": "cell_ln"}  # fmt: skip
        shapes = {"token": (VOCAB, INNER), "norm": (INNER,), "head": (VOCAB, INNER),
                  "cell": (INNER,)}  # fmt: skip
        self.names = {}
        for level in range(LEVELS):
            for part, name in self.parts.items():
                first = (min(level, 1) if part == "state" else 0) if tied else level
                label = f"{start}{name}.{level}{'' if part in ('head', 'cell') else infix}"
                self.names[part, level] = f"{start}{name}.{first}" + (
                    "" if part in ("head", "cell") else infix
                )
                shape = shapes.get(part) or (gates * INNER, D if level == 0 else INNER)
                if level != first:
                    if keeps and kind != "lstm":
                        for end in (".weight", ".bias")[: 2 if part == "norm" else 1]:
                            base = self.tensors[self.names[part, level] + end]
                            self.tensors[label + end] = base.clone()
                    continue
                bump = 1.0 if part in ("norm", "cell") else 0.0
                self.tensors[f"{label}.weight"] = torch.randn(shape) * 0.4 + bump
                if part in ("norm", "cell"):
                    self.tensors[f"{label}.bias"] = torch.randn(shape) * 0.4
        config = {
            "model_type": "mlp_speculator",
            "n_predict": LEVELS,
            "tie_weights": tied,
            "scale_input": scale,
            "emb_dim": D,
            "inner_dim": INNER,
            "vocab_size": VOCAB,
        }
        if kind == "lstm":
            config |= {"method": "sum_lstm", "tie_lstm_embs": True, "inner_dim": str(INNER)}
        write(folder, config, self.tensors)

    def get(self, part, level, end="weight"):
        return self.tensors[f"{self.names[part, level]}.{end}"]

    def row(self, hidden, path):
        """The row after a path that begins with the root's token."""
        kept = 0.5 ** (0.5 / LEVELS)
        share = math.sqrt((1 - kept * kept) * INNER / 2) / kept
        state, cells = hidden, torch.zeros(INNER)
        if self.scale:
            state = rms(state) / math.sqrt(2)
        for level, token in enumerate(path):
            embed = self.get("token", level)[token] * share
            mixed = self.get("state", level) @ state
            weight, bias = self.get("norm", level), self.get("norm", level, "bias")
            if self.kind != "lstm":
                state = gelu(rms(mixed + embed) * weight + bias)
                continue
            f, i, o, c = (mixed.view(4, INNER) + embed).unbind(0)
            c = gelu(rms(c) * self.get("cell", 0) + self.get("cell", 0, "bias"))
            cells = cells * torch.sigmoid(f) + c * torch.sigmoid(i)
            state = gelu(rms(cells) * weight + bias) * torch.sigmoid(o)
        return self.get("head", len(path) - 1) @ state


CASES = [
    ("ibm", {}), ("ibm", {"scale": True}), ("ibm", {"tied": True, "scale": True}),
    ("ibm", {"tied": True, "keeps": False}), ("plain", {}), ("arctic", {"tied": True}),
    ("arctic", {"scale": True}), ("lstm", {"tied": True}), ("lstm", {"tied": True, "scale": True}),
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.mark.parametrize(("kind", "options"), CASES)
@torch.no_grad()
def test_published_heads_are_exact(kind, options, model, tmp_path):
    made = Published(tmp_path / "a", kind, **options)
    head = load(tmp_path / "a", model)
    family = "arctic_lstm" if kind == "lstm" else "mlp_speculator"
    assert (head.spec.family, head.spec.num_modules, head.max_depth) == (family, LEVELS, LEVELS)
    save(head, tmp_path / "b")
    for found in (head, load(tmp_path / "b", model)):
        hidden, text = random_hidden(found, 6), torch.arange(1, 7)
        state = found.new_state()
        found.read(state, [h[:4] for h in hidden], text[:4])
        found.step(state, [0], torch.tensor([8]))
        rows = [found.read(state, [h[4:] for h in hidden], text[4:])]
        rows += [found.step(state, [0, 0], torch.tensor([3, 9]))]
        rows += [found.step(state, [2, 0], torch.tensor([4, 5]))]  # Of two levels.
        paths = ([6], [6, 3], [6, 9], [6, 9, 4], [6, 5])
        for row, path in zip(torch.cat(rows), paths, strict=True):
            wanted = made.row(hidden[0][-1], path)
            torch.testing.assert_close(row, wanted, rtol=0, atol=1e-5 * wanted.abs().max())
        with pytest.raises(mv.errors.DraftError, match="has no level: the head has 3"):
            found.step(state, [3], torch.tensor([1]))


@pytest.mark.parametrize("kind", ["ibm", "lstm"])
@pytest.mark.parametrize(
    "settings",
    [{"num_tokens": 3}, {"max_nodes": 6}, {"num_tokens": 2, "params": mv.SamplingParams()}],
)
def test_drafts_change_nothing(kind, settings, model, tmp_path):
    Published(tmp_path, kind, tied=True)
    head = load(tmp_path, model)
    drafter = mv.drafters.Heads(head, **settings)
    batch = [prompt(n, seed=n)[0].tolist() for n in (9, 4)]
    found = []
    for cache in (None, "static"):
        decoder = mv.Decoder(model, drafter, mv.SamplingParams(temperature=0.0), cache=cache)
        options = {"max_new_tokens": 8, "eos_token_id": (), "seed": 5}
        plain = decoder.generate(batch, speculate=False, **options)
        fast = decoder.generate(batch, **options)
        assert fast.tokens == plain.tokens
        assert fast.stats.drafted > 0
        found.append(fast.stats.drafted)
    assert found[0] == found[1]
    assert len(probe(head, model, num_tokens=64).readings) == 1


def test_what_is_wrong_is_named(model, tmp_path):
    made = Published(tmp_path, "ibm", tied=True)
    tensors = load_file(tmp_path / "model.safetensors")
    config = (tmp_path / "config.json").read_text()
    changed = {**tensors, "speculator.emb.2.weight": tensors["speculator.emb.2.weight"] + 1}
    save_file(changed, tmp_path / "model.safetensors")
    with pytest.raises(mv.errors.UnsupportedModelError, match=r"tie_weights: emb\.2\.weight diff"):
        load(tmp_path, model)
    save_file(made.tensors, tmp_path / "model.safetensors")
    for old, new, message in (
        ('"n_predict": 3', '"n_predict": 1e9', "n_predict: found"),
        ('"n_predict": 3', '"n_predict": 4000', "n_predict: found 4000"),
        ('"scale_input": false', '"scale_input": "yes"', "scale_input: found yes"),
    ):
        (tmp_path / "config.json").write_text(config.replace(old, new))
        with pytest.raises(mv.errors.UnsupportedModelError, match=message):
            load(tmp_path, model)
    Published(tmp_path, "lstm", tied=True)
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json").read_text().replace('"tie_lstm_embs": true', '"a": true')
    )
    with pytest.raises(mv.errors.UnsupportedModelError, match="gates have embeddings"):
        load(tmp_path, model)
