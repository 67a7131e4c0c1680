"""A chain that only the device knows ends where the same chain ends on the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.verifier.growers import Chain
from mtp_verify.verifier.kernels.device.drafts import DeviceDrafts
from mtp_verify.verifier.kernels.device.ends import end_chains
from mtp_verify.verifier.kernels.device.verifier import DeviceVerifier
from tests.host_reads import HostReads

SIZE, LENGTH, COUNT = 7, 5, 24
ENDS = [2, 5]
WARM = mv.SamplingParams(temperature=0.8)


def cut(draft, rows):
    """What a grower would have drafted that stops at an end."""
    tokens = draft.tokens[1:].tolist()
    count = next((n for n, token in enumerate(tokens, 1) if token in ENDS), len(tokens))
    tree = mv.TokenTree(range(-1, count))
    return mv.Draft(tree, draft.tokens[: count + 1], law="chain", logits=rows[:count])


@pytest.mark.parametrize("rule", ["token", "block"])
def test_what_stands_below_an_end_decides_nothing(rule):
    generator = torch.Generator().manual_seed(4)
    target = torch.randn(COUNT, LENGTH + 1, SIZE, generator=generator)
    rows = target[:, :LENGTH] + 0.7 * torch.randn(COUNT, LENGTH, SIZE, generator=generator)
    seeds, positions = list(range(COUNT)), [3] * COUNT
    drafts = [
        Chain(LENGTH, root=0, seed=seed, position=3).grow(lambda p, r=own: r[[len(x) for x in p]])
        for seed, own in zip(seeds, rows, strict=True)
    ]
    joined = DeviceDrafts(
        np.arange(COUNT + 1) * (LENGTH + 1),
        np.tile(np.arange(-1, LENGTH), COUNT),
        np.concatenate([draft.tokens for draft in drafts]),
        "chain",
        logits=rows.flatten(0, 1),
        rows=np.concatenate([[*(i * LENGTH + np.arange(LENGTH)), -1] for i in range(COUNT)]),
    )
    verifier = DeviceVerifier(COUNT + 2, COUNT * 8, SIZE, torch.float32, device="cpu")
    verifier.plan(joined, WARM, rule=rule, seeds=seeds, positions=positions)
    logits = target.flatten(0, 1)
    # The last request ends nowhere; there are places that are not used.
    table = torch.full((COUNT + 2, 3), -1, dtype=torch.int32)
    table[: COUNT - 1, :2] = torch.tensor(ENDS)
    with HostReads() as reads:
        end_chains(verifier.step(logits), table)
    assert reads.places == []
    verifier.verify(logits)
    found = verifier.host()
    given = {"rule": rule, "position": 3}
    uncut = [
        mv.verify(draft, own, WARM, seed=seed, **given)
        for draft, own, seed in zip(drafts, target, seeds, strict=True)
    ]
    ended = [cut(*each) for each in zip(drafts, rows, strict=True)]
    assert sum(draft.num_nodes <= LENGTH for draft in ended) > COUNT // 2
    wanted = [
        mv.verify(draft, own[: draft.num_nodes], WARM, seed=seed, **given)
        for draft, own, seed in zip(ended, target, seeds, strict=True)
    ]
    wanted[-1] = uncut[-1]
    for place, verdict in enumerate(wanted):
        assert found[place].tokens.tolist() == verdict.tokens.tolist()
        assert found[place].path.tolist() == verdict.path.tolist()
    if rule == "block":
        # Above an end, too, the rule would have decided otherwise.
        longest = [len(v.tokens) for v in wanted]
        pairs = zip(uncut, wanted, longest, strict=True)
        assert any(a.tokens.tolist()[:n] != b.tokens.tolist() for a, b, n in pairs)
