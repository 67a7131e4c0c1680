"""vLLM without vLLM: its model runners' modules, with the signatures and fields of 0.32 to 0.34.

Samplers return words that say they are the engine's own. Only what the plug-in calls does anything:
`apply_sampling_params` shapes rows as V2's sampler does, copying them if any request needs it.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

OWN = "the engine's own"
STATES = 12  # Of V2's requests, in use or not.


def top_k_top_p(logits, k, p):
    """vLLM's `apply_top_k_top_p`, without top-p."""
    assert p is None
    if k is None:
        return logits
    least = [row.topk(int(size)).values[-1] for row, size in zip(logits, k, strict=True)]
    return logits.masked_fill(logits < torch.stack(least)[:, None], -torch.inf)


def _classes():
    class RejectionSampler:
        def forward(self, metadata, draft_probs, logits, sampling_metadata):
            return OWN

    class Sampler:
        def __init__(self, states):
            self.sampling_states = states

        def apply_sampling_params(
            self,
            logits,
            expanded_idx_mapping,
            idx_mapping,
            idx_mapping_np,
            pos,
            input_ids,
            expanded_local_pos,
            seq_lens_upper_bound_np,
            skip_top_k_top_p=False,
        ):
            states = self.sampling_states
            temperature, top_k = states.temperature.np, states.top_k.np
            batch = idx_mapping_np
            if np.isin(temperature[batch], (0, 1)).all() and not top_k[batch].any():
                return logits
            own = expanded_idx_mapping.numpy()
            divisor = torch.tensor(np.where(temperature[own] == 0, 1, temperature[own]))
            rows = logits.float() / divisor[:, None]
            sizes = torch.tensor(np.where(top_k[own] == 0, rows.shape[1], top_k[own]))
            return top_k_top_p(rows, sizes, None)

        def sample(
            self,
            logits,
            expanded_idx_mapping,
            idx_mapping,
            idx_mapping_np,
            pos,
            input_ids,
            expanded_local_pos,
            seq_lens_upper_bound_np,
            return_logprobs=False,
        ):
            return OWN, logits

    class RejectionSamplerV2:
        def __init__(self, sampler, num_speculative_steps):
            self.sampler = sampler
            self.num_speculative_steps = num_speculative_steps
            self.use_block_verification = False
            self.synthetic_conditional_rates = None
            self.watermark_key = None
            self.enable_adaptive_verification = False

        def _verify(
            self,
            logits,
            draft_logits,
            draft_sampled,
            pos,
            cu_num_logits,
            idx_mapping,
            idx_mapping_np,
            expanded_idx_mapping,
            expanded_local_pos,
            seq_lens_upper_bound_np,
            verify_draft_sampled,
        ):
            return OWN

    class RejectionSamplerOf34(RejectionSamplerV2):
        def _verify(
            self,
            logits,
            draft_logits,
            draft_sampled,
            pos,
            cu_num_logits,
            idx_mapping,
            idx_mapping_np,
            expanded_idx_mapping,
            expanded_local_pos,
            seq_lens_upper_bound_np,
        ):
            return OWN

    return RejectionSampler, Sampler, RejectionSamplerV2, RejectionSamplerOf34


def stand_in(monkeypatch, version="0.33.0", *, has_v2=True):
    """Put the modules of a vLLM into this process; return its classes `v1`, `v2` and `plain`."""
    v1, plain, v2, of_34 = _classes()
    has_v1 = not version.startswith("0.34")
    v2 = v2 if has_v1 else of_34
    modules = {
        "vllm": {"__version__": version},
        "vllm.v1": {},
        "vllm.v1.outputs": {"SamplerOutput": SimpleNamespace},
        "vllm.v1.sample": {},
        "vllm.v1.sample.ops": {},
        "vllm.v1.sample.ops.topk_topp_sampler": {"apply_top_k_top_p": top_k_top_p},
        "vllm.v1.worker": {},
    }
    if has_v1:
        modules["vllm.v1.sample.rejection_sampler"] = {"RejectionSampler": v1}
    if has_v2:
        gumbel = {} if version.startswith("0.32") else {"spec_step_seed": object()}
        modules |= {
            "vllm.v1.worker.gpu": {},
            "vllm.v1.worker.gpu.sample": {},
            "vllm.v1.worker.gpu.sample.gumbel": gumbel,
            "vllm.v1.worker.gpu.sample.sampler": {"Sampler": plain},
            "vllm.v1.worker.gpu.spec_decode": {},
            "vllm.v1.worker.gpu.spec_decode.rejection_sampler": {"RejectionSampler": v2},
        }
    for name, content in modules.items():
        put(monkeypatch, name, content)
    return SimpleNamespace(v1=v1 if has_v1 else None, v2=v2, plain=plain)


def put(monkeypatch, name, content):
    """Put a module into this process."""
    module = ModuleType(name)
    module.__path__ = []
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def _both(values, dtype):
    values = np.asarray(values, dtype)
    return SimpleNamespace(np=values, gpu=torch.from_numpy(values))


def states(temperature, seeds, places, top_k=None):
    """`SamplingStates` of some requests at their places; the others hold rubbish."""
    count = max([STATES, *(place + 1 for place in places)])
    filled = {
        "temperature": (np.full(count, np.nan), temperature, np.float32),
        "seeds": (np.full(count, -99), list(seeds), np.int64),
        "top_k": (np.full(count, 1), top_k or [0] * len(places), np.int32),
    }
    for values, own, _ in filled.values():
        values[list(places)] = own
    return SimpleNamespace(
        **{name: _both(values, dtype) for name, (values, _, dtype) in filled.items()}
    )


def batch(drafts, places, positions):
    """What `_verify` is given of a batch, by name: requests with their drafts, ragged."""
    sizes = [len(tokens) + 1 for tokens in drafts]
    offsets = np.cumsum([0, *sizes])
    number = np.concatenate([np.arange(size) for size in sizes]) if sizes else np.zeros(0, int)
    tokens = [token for own in drafts for token in (0, *own)]
    return {
        "draft_sampled": torch.tensor(tokens, dtype=torch.int32),
        "pos": torch.tensor(np.repeat(positions, sizes) + number, dtype=torch.int64),
        "cu_num_logits": torch.tensor(offsets, dtype=torch.int32),
        "idx_mapping": torch.tensor(places, dtype=torch.int64),
        "idx_mapping_np": np.array(places, np.intp),
        "expanded_idx_mapping": torch.tensor(np.repeat(places, sizes), dtype=torch.int64),
        "expanded_local_pos": torch.tensor(number, dtype=torch.int32),
        "seq_lens_upper_bound_np": np.zeros(len(places), np.int32),
        "verify_draft_sampled": torch.tensor(tokens, dtype=torch.int32),
    }
