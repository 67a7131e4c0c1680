"""Drive the V2 samplers of vLLM's own source with the plug-in in place; vLLM is not installed.

    python tests/vllm_source_worker.py FOLDER VERSION

FOLDER holds an unpacked wheel of vLLM. A few of its files are loaded as they are: the samplers,
what they hold of requests, their batches and noise. Everything else that these import is empty, but
for a few functions that the step needs. Kernels, vLLM's and this package's, run in Triton's
interpreter.
One line of JSON says, for each case, what was emitted and what `mtp_verify.verify` emits.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton

import mtp_verify as mv
from mtp_verify.integrations import vllm as plugin

GPU = "vllm.v1.worker.gpu"
SAMPLER, STATES = f"{GPU}.sample.sampler", f"{GPU}.sample.states"
REJECTION = f"{GPU}.spec_decode.rejection_sampler"
REAL = {
    SAMPLER,
    STATES,
    REJECTION,
    f"{REJECTION}_utils",
    f"{GPU}.sample.gumbel",
    f"{GPU}.sample.output",
    f"{GPU}.spec_decode.draft_logits",
    f"{GPU}.input_batch",
    "vllm.v1.sample.rejection_sampler",
}
VOCAB, DEPTH, SLOTS = 45, 3, 12
DRAFTS = [[3, 1, 4], [], [7, -1, 2], [9, 9], [-1, 0, 0], [44]]
PLACES = [5, 0, 11, 3, 2, 7]
TEMPERATURES = [1.0, 0.7, 1.3, 0.0, 1.0, 0.3]
SEEDS = [1, -5, 3, 4, 1 << 33, 6]
POSITIONS = [0, 17, 100_000, 3, 5, 1 << 20]
TOP_K = [0, 5, 0, 0, 2, 0]


class Empty(ModuleType):
    """A module in which every name is something that does nothing."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        value = importlib.import_module(full) if full in REAL else MagicMock(name=full)
        setattr(self, name, value)
        return value


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the files that are loaded, and empty modules for the rest of vLLM."""

    def __init__(self, folder):
        self.folder = folder

    def find_spec(self, name, path, target=None):
        if name in REAL:
            file = f"{self.folder}/{name.replace('.', '/')}.py"
            # What this release does not have cannot be imported.
            is_there = Path(file).exists()
            return importlib.util.spec_from_file_location(name, file) if is_there else None
        if name.partition(".")[0] == "vllm":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module):
        """Nothing: it is empty."""


class Mirrored:
    """A host's array and its copy, in place of memory that both sides see."""

    def __init__(self, size, dtype, max_concurrency=None):
        self.np = torch.zeros(size, dtype=dtype).numpy()
        self.copy_to_uva()

    def copy_to_uva(self, n=None):
        self.gpu = torch.from_numpy(self.np.copy())
        return self.gpu


def top_k_top_p(logits, k, p, **_):
    """Keep the k largest logits of each row."""
    assert p is None
    least = [
        row.topk(min(int(size), VOCAB)).values[-1] for row, size in zip(logits, k, strict=True)
    ]
    return logits.masked_fill(logits < torch.stack(least)[:, None], -torch.inf)


def provide(folder, version):
    """Make vLLM's source importable."""
    sys.meta_path.insert(0, Finder(folder))
    given = {
        "vllm": {"__version__": version},
        "vllm.triton_utils": {"triton": triton, "tl": triton.language},
        "vllm.config.model": {"PROCESSED_LOGPROBS_MODES": ()},
        f"{GPU}.buffer_utils": {"UvaBackedTensor": Mirrored},
        "vllm.v1.sample.ops.topk_topp_sampler": {"apply_top_k_top_p": top_k_top_p},
    }
    for name, values in given.items():
        importlib.import_module(name).__dict__.update(values)
    # The model runner, as far as the plug-in looks at it.
    sampler = importlib.import_module(REJECTION).RejectionSampler
    importlib.import_module(f"{GPU}.model_runner").RejectionSampler = sampler


def samplers(method):
    """Return both samplers as the runner builds them, with the requests."""
    kind = importlib.import_module(SAMPLER).Sampler
    sampler = kind.__new__(kind)  # Its own states aside, it would build those of all features.
    states = importlib.import_module(STATES).SamplingStates(SLOTS, VOCAB)
    nothing = SimpleNamespace(apply=lambda *_: None, max_num_token_ids=lambda _: 0)
    vars(sampler).update(
        logprobs_mode="raw_logprobs", compute_nans=False, use_fp64_gumbel=False,
        sampling_states=states, needs_logits_processing=np.zeros(SLOTS, bool),
        may_mask_logits=np.zeros(SLOTS, bool),
        logits_processors=[], thinking_budget_state=nothing, return_sampling_mask=False,
        use_flashinfer=False, use_xpu_sampler=False, trace_replay_state=None,
        logprob_token_ids_state=nothing,
        req_states=SimpleNamespace(
            prefill_len=SimpleNamespace(gpu=torch.zeros(SLOTS, dtype=torch.int32))
        ),
    )  # fmt: skip
    for place, temperature, seed, top_k in zip(PLACES, TEMPERATURES, SEEDS, TOP_K, strict=True):
        params = SimpleNamespace(
            temperature=temperature, seed=seed, top_k=top_k, top_p=1.0, min_p=0.0, logprobs=None
        )
        sampler.needs_logits_processing[place] = states.add_request(place, params)
    states.apply_staged_writes()
    config = SimpleNamespace(
        num_speculative_tokens=DEPTH, enable_adaptive_verification=False,
        rejection_sample_method=method, fly_entropy_threshold=0.3, fly_entropy_top_k=3,
    )  # fmt: skip
    rejection = importlib.import_module(REJECTION)
    return sampler, rejection.RejectionSampler(sampler, config, torch.device("cpu"))


def input_batch(drafts):
    """Return the fields of `InputBatch` that samplers read."""
    sizes = [len(tokens) + 1 for tokens in drafts]
    offsets = np.cumsum([0, *sizes]).astype(np.int32)
    number = np.concatenate([np.arange(size) for size in sizes])
    ends = torch.tensor(np.add(POSITIONS, sizes), dtype=torch.int32)
    return SimpleNamespace(
        num_reqs=len(drafts),
        num_draft_tokens=int(offsets[-1]) - len(drafts),
        idx_mapping=torch.tensor(PLACES),
        idx_mapping_np=np.array(PLACES),
        expanded_idx_mapping=torch.tensor(np.repeat(PLACES, sizes)),
        expanded_local_pos=torch.tensor(number, dtype=torch.int32),
        input_ids=torch.tensor([t for own in drafts for t in (1, *own)], dtype=torch.int32),
        positions=torch.tensor(np.repeat(POSITIONS, sizes) + number),
        logits_indices=torch.arange(int(offsets[-1])),
        cu_num_logits=torch.tensor(offsets),
        cu_num_logits_np=offsets,
        seq_lens=ends,
        seq_lens_cpu_upper_bound=ends,
    )


def lists(output):
    """Return the tokens that each request emits."""
    counts = output.num_sampled.tolist()
    return [row[:n] for row, n in zip(output.sampled_token_ids.tolist(), counts, strict=True)]


def wanted(request, logits, draft_logits, rule):
    """Return what the core emits."""
    tokens = DRAFTS[request]
    tokens = tokens[: next((i for i, t in enumerate(tokens) if t < 0), len(tokens))]
    temperature = float(np.float32(TEMPERATURES[request]))
    draft = mv.Draft.chain(tokens)
    if draft_logits is not None and tokens and temperature and rule in ("token", "block"):
        rows = draft_logits[PLACES[request], : len(tokens)]
        draft = mv.Draft.chain(tokens, (rows / temperature).softmax(1))
    start = sum(len(own) + 1 for own in DRAFTS[:request])
    params = mv.SamplingParams(temperature=temperature, top_k=TOP_K[request], preset="vllm")
    return mv.verify(
        draft, logits[start : start + len(tokens) + 1], params, rule=rule,
        seed=SEEDS[request] % (1 << 64), position=POSITIONS[request],
    ).tokens.tolist()  # fmt: skip


def handed_over(rows):
    """Return the forms in which this release hands a drafter's rows over, by name."""
    module = importlib.import_module(f"{GPU}.spec_decode.draft_logits")
    if isinstance(module, Empty):  # Before 0.34.
        return {"drawn": rows}
    # All rows, and those of one rank among several: they lie in another order.
    forms = {}
    for name, places in (("drawn", range(SLOTS)), ("drawn, on its rank", PLACES[::-1])):
        cache = module.DraftLogitsCache(
            len(places), DEPTH, VOCAB, dtype=torch.float32, fill=0.0, device="cpu"
        )
        cache.values.copy_(rows[list(places)])
        forms[name] = cache
    cache.row_mapping = torch.full((SLOTS,), -1, dtype=torch.int32)
    cache.row_mapping[PLACES[::-1]] = torch.arange(len(PLACES), dtype=torch.int32)
    cache.inverse_row_mapping = torch.tensor(PLACES[::-1], dtype=torch.int32)
    return forms


def main():
    folder, version = sys.argv[1:]
    provide(folder, version)
    torch.manual_seed(0)
    cases = {}
    for rule, method in (
        ("auto", "standard"), ("auto", "block"), ("block", "standard"), ("coupled", "standard"),
    ):  # fmt: skip
        plugin.install(rule)
        assert plugin.is_installed()
        own = rule if rule != "auto" else {"standard": "token"}.get(method, method)
        if own == "block" and version.startswith("0.32"):
            own = "token"  # Its drafts are no new draws under block verification.
        rows = torch.randn(SLOTS, DEPTH, VOCAB)
        for form, draft_logits in {"copied": None, **handed_over(rows)}.items():
            batch = input_batch(DRAFTS)
            logits = torch.randn(len(batch.positions), VOCAB) * 2
            sampler, rejection = samplers(method)
            found = lists(rejection(logits, batch, draft_logits))
            numbers, is_drawn = range(len(DRAFTS)), draft_logits is not None
            core = own if is_drawn or own == "coupled" else "auto"
            drawn_from = rows if is_drawn else None
            right = [wanted(number, logits, drawn_from, core) for number in numbers]
            cases[f"{rule} {method} {form}"] = [found, right]
            # The same in chunks of few rows.
            module = importlib.import_module(REJECTION)
            module.MAX_CHUNK_BYTES, before = 4 * VOCAB * 4, module.MAX_CHUNK_BYTES
            found = lists(rejection(logits, batch, draft_logits))
            module.MAX_CHUNK_BYTES = before
            cases[f"{rule} {method} {form} in chunks"] = [found, right]
            if rule == "coupled":
                roots = logits[batch.cu_num_logits[:-1].long()]
                plain = lists(sampler(roots, input_batch([[]] * len(DRAFTS))))
                cases[f"plain {form}"] = [plain, [tokens[:1] for tokens in right]]
    plugin.uninstall()
    assert not plugin.is_installed()
    print(json.dumps(cases))


if __name__ == "__main__":
    main()
