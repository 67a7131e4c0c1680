"""Drafts with rows, for the core and for its readable twin.

The two compute in different ways (lazy float32 exponentials against dense float64 rows), so they
may part where a uniform lies within 1e-5 of a threshold. Such cases are counted and must stay rare.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import strategies as st

import mtp_verify as mv
from mtp_verify.testing import draw_logits
from mtp_verify.verifier import reference
from mtp_verify.verifier.reference import DRAFT, Noise, Tree

torch = pytest.importorskip("torch")

NEAR = 1e-5
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# What a drafter hands in: its logits, or probabilities of a dtype.
SOURCES = {
    "logits": None,
    "probs64": torch.float64,
    "probs32": torch.float32,
    "probs16": torch.float16,
    "probs_bf16": torch.bfloat16,
}
RULES = {
    "deterministic": ["target_only", "coupled", "topdown", "lifted", "token", "block"],
    "chain": ["target_only", "coupled", "topdown", "lifted", "token", "block"],
    "iid": ["target_only", "coupled", "topdown", "lifted", "kseq"],
    # An iid draft of several paths of one length.
    "paths": ["topdown", "lifted", "kseq", "gbv", "global_resolution"],
    "swor": ["target_only", "coupled", "topdown", "lifted"],
    "top_plus_one": ["target_only", "coupled", "topdown", "lifted"],
    "mixed": ["target_only", "coupled", "topdown", "lifted"],
    "unknown": ["target_only", "coupled"],
}
CORE = {"token": "topdown", "block": "lifted"}


def shaping():
    return st.builds(
        mv.SamplingParams,
        temperature=st.sampled_from([1.0, 0.7, 1.5, 0.2, 0.05]),
        top_k=st.sampled_from([0, 3, 40]),
        top_p=st.sampled_from([1.0, 0.9, 0.6]),
        min_p=st.sampled_from([0.0, 0.05]),
        preset=st.sampled_from(["transformers", "vllm"]),
    )


def widened(logits):
    return logits.float().numpy()


def shaped(logits, params):
    return np.stack([reference.shaped(row, params) for row in widened(logits)])


def skeleton(rng, law, most):
    """Parents of a random tree; a path where the law wants one."""
    count = int(rng.integers(0, most + 1))
    if law == "paths":
        paths, depth = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        return [-1, *(max(node - paths, 0) for node in range(1, paths * depth + 1))]
    if law == "chain":
        return [-1, *range(count)]
    return [-1, *(int(rng.integers(max(0, i - 3), i)) for i in range(1, count + 1))]


def fill(rng, law, parents, q, noise):
    """Tokens under a law, drawn append-only, and which nodes were drawn.

    Where a node's q has no tokens left, its remaining children and what is below them are dropped;
    returns the nodes that stay.
    """
    tokens, sampled, stay = [-1], [False], [0]
    plan = {}
    for node, parent in enumerate(parents[1:], 1):
        tokens.append(-1)
        sampled.append(False)
        if parent not in stay:
            continue
        row = q[parent].copy()
        family = [i for i, p in enumerate(parents) if p == parent and i > 0]
        if law in ("top_plus_one", "mixed") and parent not in plan:
            # How many children are drawn; the rest are the most likely tokens.
            drawn = 1 if law == "top_plus_one" else int(rng.integers(0, len(family) + 1))
            order = [int(t) for t in np.argsort(-row, kind="stable") if row[t] > 0]
            plan[parent] = family[:drawn], order[: len(family) - drawn]
        elder = [i for i in family if i < node and i in stay]
        taken = {tokens[i] for i in elder}
        if law in ("deterministic", "unknown"):
            free = [int(t) for t in np.argsort(-row, kind="stable") if t not in taken]
            if not free:
                continue
            tokens[node] = free[int(rng.integers(0, min(3, len(free))))]
        elif law in ("top_plus_one", "mixed") and node not in plan[parent][0]:
            top = [t for t in plan[parent][1] if t not in taken]
            if not top:
                continue
            tokens[node] = top[0]
        else:
            if law in ("swor", "top_plus_one", "mixed"):
                row[[*taken, *(plan[parent][1] if parent in plan else [])]] = 0
            if row.sum() <= 1e-9:
                continue
            tokens[node] = noise.draw(node, row, DRAFT)
            sampled[node] = True
        stay.append(node)
    return stay, tokens, sampled


def near_a_cut(logits, params):
    """Whether rounding can change which tokens top-p keeps."""
    if params.top_p == 1:
        return False
    min_p = 0.0 if params.preset == "transformers" else params.min_p
    rows = shaped(logits, dataclasses.replace(params, top_p=1.0, min_p=min_p))
    mass = np.cumsum(np.sort(rows)[:, ::-1], axis=1)
    return bool(np.abs(mass - params.top_p).min() < NEAR)


def normal_logits(rng, vocab, count):
    """Target and drafter, (count, V) each: many tokens of each row matter, half have ties."""
    rows = rng.normal(0, 2.0, (count, vocab)).astype(np.float32)
    if rng.random() < 0.5:
        rows = np.round(rows * 2) / np.float32(2)
    return rows, rows + rng.normal(0, rng.choice([0.2, 1.0, 3.0]), rows.shape).astype(np.float32)


class Case:
    """One draft with rows, for the core and for the reference.

    Args:
        kind: Of the rows: "normal", one of `draw_logits`, or "mixture" of those; "any" draws.
    """

    def __init__(self, seed, law, vocab, dtype, params, draft_params, source, most=7, kind="any"):
        rng = np.random.default_rng(seed)
        self.params, self.draft_params = params, draft_params
        self.seed, self.position = int(rng.integers(0, 2**63)), int(rng.integers(0, 2**31))
        parents = skeleton(rng, law, most)
        if kind == "any":
            kind = rng.choice(["normal", "mixture"])
        if kind == "normal":
            rows, noisy = normal_logits(rng, vocab, len(parents))
        else:
            kind = None if kind == "mixture" else kind
            rows, noisy = draw_logits(rng, vocab, len(parents), kind=kind)
        if law == "paths":
            # Equal prefixes have equal rows: here all prefixes of one length.
            law, num_paths = "iid", parents.count(0)
            depths = [0, *(1 + node // num_paths for node in range(len(parents) - 1))]
            rows, noisy = rows[depths], noisy[depths]
        logits, draft_logits = torch.from_numpy(rows).to(dtype), torch.from_numpy(noisy).to(dtype)
        q = shaped(draft_logits, draft_params)
        if source != "logits":
            probs = torch.from_numpy(q).to(SOURCES[source])
            q = probs.double().numpy()
        noise = Noise(self.seed, self.position)
        stay, tokens, sampled = fill(rng, law, parents, q, noise)
        new = {node: i for i, node in enumerate(stay)}
        parents = [-1, *(new[parents[node]] for node in stay[1:])]
        tokens, sampled = [tokens[n] for n in stay], [sampled[n] for n in stay]
        q, draft_logits = q[stay], draft_logits[stay]
        # A model's padded vocabulary leaves rows apart in memory: unit stride in V only.
        padded = torch.full((len(stay), vocab + 3), torch.nan, dtype=dtype)
        padded[:, :vocab] = logits[stay]
        self.logits, self.draft_logits = padded[:, :vocab], draft_logits
        self.tree = Tree(parents, tokens, shaped(self.logits, params), q, sampled, law)
        given = {}
        if law not in ("deterministic", "unknown"):
            if source == "logits":
                given = {"logits": draft_logits, "params": draft_params}
            else:
                given = {"probs": probs[stay]}
        if law in ("top_plus_one", "mixed"):
            given["sampled"] = np.array(sampled)
        self.draft = mv.Draft(mv.TokenTree(parents), tokens, law=law, **given)

    def check(self, rule, tally, lossy=None, twin=reference):
        """Compares the core with a twin; where they part within rounding, counts it."""
        tally["cases"] += 1
        before = self.logits.clone()
        address = {"seed": self.seed, "position": self.position, "lossy": lossy}
        found = mv.verify(self.draft, self.logits, self.params, rule=rule, **address)
        assert torch.equal(before, self.logits)
        tree = twin.Tree(**vars(self.tree))  # the twin may be a copy of the reference
        wanted = twin.verify(tree, rule=CORE.get(rule, rule), **address)
        same = found.tokens.tolist() == wanted.tokens and found.path.tolist() == wanted.path
        if not same:
            assert (
                wanted.margin < NEAR
                or near_a_cut(self.logits, self.params)
                or near_a_cut(self.draft_logits, self.draft_params)
            ), (rule, found.tokens, wanted)
            tally["near a threshold"] += 1
            return
        assert found.num_accepted == len(found.path) == len(found.tokens) - 1
        assert (found.tokens.dtype, found.path.dtype) == (np.int64, np.int64)
        assert found.lossless == (lossy is None)
        np.testing.assert_allclose(found.logprobs, wanted.logprobs, rtol=1e-4, atol=1e-5)
        tally["accepted"] += len(wanted.path)
