"""A new family with a new kind of block works by its record and its class alone."""

from __future__ import annotations

import torch
from torch import nn

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.heads import (
    FAMILIES,
    CausalHead,
    HeadSpec,
    Layout,
    Sizes,
    export,
    load,
    save,
)
from mtp_verify.heads.blocks.llama import LlamaBlock
from mtp_verify.heads.families import BLOCKS
from mtp_verify.heads.io.inspect import engines
from mtp_verify.heads.spec import Family
from tests.heads import randomised
from tests.models import prompt, tiny_model


class GatedBlock(LlamaBlock):
    """A Llama block whose output passes a gate for each column."""

    kind = "gated"

    def __init__(self, spec, index=0, target=None):
        super().__init__(spec, index, target)
        self.gate = nn.Parameter(torch.ones(spec.sizes.hidden_size))

    def forward(self, x, inputs):
        return super().forward(x, inputs) * self.gate.sigmoid()


TOY = Family(
    HeadSpec(
        "toy", block=GatedBlock.kind, num_modules=2,
        layout=Layout("toy.{i}.", {
            "embed_norm": "norm_e", "hidden_norm": "norm_h", "fusion": "mix", "output_norm": "end",
            "block": "inner.",
        }, count_keys=("num_toys",), model_types=("toy",)),
    ),
    GatedBlock,
    ("vllm",),
)  # fmt: skip


def test_toy_family_is_saved_exported_recognised_and_drafts(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", TOY)
    monkeypatch.setitem(BLOCKS, "gated", GatedBlock)
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    spec = TOY.spec.replace(sizes=Sizes.of(model.config))
    head = randomised(CausalHead(spec)).attach(model).eval()
    save(head, tmp_path / "native")
    export(head, tmp_path / "served", "in_checkpoint", base=tmp_path / "base")
    for name in ("native", "served"):
        found = load(tmp_path / name, model)
        assert found.spec.family == "toy"
        state = found.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in head.state_dict().items())
        assert "levels.1.layers.0.gate" in state
    assert engines(spec)["vllm"] == 'yes: method "mtp"'
    decoder = Decoder(model, mv.drafters.Heads(found), mv.SamplingParams(temperature=0.0))
    plain = decoder.generate(prompt(), max_new_tokens=6, speculate=False)
    assert decoder.generate(prompt(), max_new_tokens=6).tokens == plain.tokens
