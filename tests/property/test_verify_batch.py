"""`verify_batch` gives, bit for bit, what `verify` gives for each sequence alone.

Whatever the other sequences are, in whichever order they come, in each form that drafts and logits
may take, on one thread or on several.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mtp_verify as mv
from tests.property.cases import DTYPES, RULES, SOURCES, Case, shaping

torch = pytest.importorskip("torch")

# Enough values of logits for three threads, where the batch has several sequences.
WIDE = 1 << 17
EXAMPLES = settings().max_examples


@pytest.fixture(autouse=True)
def _threads():
    yield
    mv.verifier.set_num_threads(2)


def bits(verdict):
    tokens, path, logprobs = verdict.tokens, verdict.path, verdict.logprobs
    return tokens.tolist(), path.tolist(), logprobs.tobytes(), verdict.rule, verdict.lossless


def address(cases):
    return {"seeds": [c.seed for c in cases], "positions": [c.position for c in cases]}


def alone(case, rule="auto", lossy=None):
    noise = {"seed": case.seed, "position": case.position}
    return mv.verify(case.draft, case.logits, case.params, rule=rule, lossy=lossy, **noise)


def cases_of(seed, laws, vocab, dtype, params, source, most=7):
    return [
        Case(seed + place, law, vocab, dtype, own, own, source, most)
        for place, (law, own) in enumerate(zip(laws, itertools.cycle(params), strict=False))
    ]


BATCHES = {
    "seed": st.integers(0, 2**32 - 1),
    "laws": st.lists(st.sampled_from(sorted(RULES)), max_size=6),
    "dtype": st.sampled_from(DTYPES),
    "params": st.lists(shaping(), min_size=1, max_size=3),
    "source": st.sampled_from(sorted(SOURCES)),
    "data": st.data(),
}


@settings(max_examples=EXAMPLES)
@given(**BATCHES, vocab=st.integers(1, 12))
def test_any_batch_is_its_sequences_alone(seed, laws, vocab, dtype, params, source, data):
    cases = cases_of(seed, laws, vocab, dtype, params, source)
    rules = [data.draw(st.sampled_from(["auto", *RULES[law]])) for law in laws]
    wanted = [bits(alone(case, rule)) for case, rule in zip(cases, rules, strict=True)]
    order = data.draw(st.permutations(range(len(cases))))
    cases, rules = [cases[b] for b in order], [rules[b] for b in order]
    drafts, params = [case.draft for case in cases], [case.params for case in cases]
    rows = [case.logits for case in cases]
    packed = torch.cat([torch.empty(0, vocab, dtype=dtype), *rows])
    height = max((len(own) for own in rows), default=0) + 1
    stacked = torch.full((len(rows), height, vocab), torch.nan, dtype=dtype)
    for place, own in enumerate(rows):
        stacked[place, : len(own)] = own
    for logits in (packed, stacked, rows):
        found = mv.verify_batch(drafts, logits, params, rule=rules, **address(cases))
        assert [bits(verdict) for verdict in found] == [wanted[b] for b in order]
        assert found.rules == [verdict.rule for verdict in found]
        assert found.num_accepted.tolist() == [verdict.num_accepted for verdict in found]
        assert np.diff(found.offsets).tolist() == [len(verdict.tokens) for verdict in found]
        for b, verdict in enumerate(found):
            begin, end = found.offsets[b : b + 2]
            assert found.tokens[begin:end].tolist() == verdict.tokens.tolist()
            assert found.path[begin - b : end - b - 1].tolist() == verdict.path.tolist()
            assert found.logprobs[begin:end].tobytes() == verdict.logprobs.tobytes()


@settings(max_examples=EXAMPLES // 10)
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(0, 3), min_size=3, max_size=4),
    dtype=st.sampled_from(DTYPES),
    params=shaping(),
)
def test_threads_change_nothing(seed, lengths, dtype, params):
    rng = np.random.default_rng(seed)
    drafts = [mv.Draft.chain(rng.integers(0, 4, length)) for length in lengths]
    rows = [rng.normal(0, 2, (1 + length, WIDE)).astype(np.float32) for length in lengths]
    for own in rows:
        own[:, :4] += 10  # Some drafts are right.
    rows = [torch.from_numpy(own).to(dtype) for own in rows]
    wanted = [
        bits(mv.verify(draft, own, params, seed=seed, position=place))
        for place, (draft, own) in enumerate(zip(drafts, rows, strict=True))
    ]
    noise = {"seeds": [seed] * len(drafts), "positions": range(len(drafts))}
    for threads in (1, 2, 3):
        mv.verifier.set_num_threads(threads)
        found = mv.verify_batch(drafts, torch.cat(rows), params, **noise)
        assert [bits(verdict) for verdict in found] == wanted


@settings(max_examples=EXAMPLES)
@given(
    seed=st.integers(0, 2**32 - 1),
    law=st.sampled_from([law for law in sorted(RULES) if law != "paths"]),
    count=st.integers(0, 5),
    vocab=st.integers(2, 12),
    params=shaping(),
    has_logits=st.booleans(),
)
def test_packed_drafts_are_the_drafts(seed, law, count, vocab, params, has_logits):
    source = "logits" if has_logits else "probs64"
    cases = cases_of(seed, [law] * count, vocab, torch.float32, [params], source)
    drafts = [case.draft for case in cases]
    sizes = [draft.num_nodes for draft in drafts]
    given = {}
    if law not in ("deterministic", "unknown"):
        # The drafter's rows of all sequences in another order than the nodes.
        q = np.concatenate([np.empty((0, vocab)), *(case.tree.drafter for case in cases)])
        order = np.random.default_rng(seed).permutation(len(q))
        given = {"rows": np.argsort(order)}
        if has_logits:
            rows = torch.cat([torch.empty(0, vocab), *(case.draft_logits for case in cases)])
            given |= {"logits": rows[order], "params": params}
        else:
            given |= {"probs": q[order]}
    if law in ("top_plus_one", "mixed"):
        given["sampled"] = [flag for draft in drafts for flag in draft.sampled]
    batch = mv.DraftBatch(
        np.cumsum([0, *sizes]),
        [parent for draft in drafts for parent in draft.tree.parents],
        [token for draft in drafts for token in draft.tokens],
        law,
        **given,
    )
    assert (len(batch), batch.law, np.diff(batch.offsets).tolist()) == (count, law, sizes)
    for b, draft in enumerate(drafts):
        part = slice(*batch.offsets[b : b + 2])
        assert batch[b].tree == draft.tree
        assert batch.parents[part].tolist() == draft.tree.parents.tolist()
        assert batch.tokens[part].tolist() == batch[b].tokens.tolist() == draft.tokens.tolist()
        assert batch[b].sampled == draft.sampled
    logits = torch.cat([torch.empty(0, vocab), *(case.logits for case in cases)])
    found = mv.verify_batch(batch, logits, params, **address(cases))
    assert [bits(verdict) for verdict in found] == [bits(alone(case)) for case in cases]
    singly = mv.verify_batch(list(batch), logits, params, **address(cases))
    assert [bits(verdict) for verdict in singly] == [bits(verdict) for verdict in found]


@settings(max_examples=EXAMPLES)
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(0, 4), max_size=5),
    extra=st.integers(0, 2),
    vocab=st.integers(1, 9),
    is_sampled=st.booleans(),
    is_sliced=st.booleans(),
)
def test_chains_are_the_chains(seed, lengths, extra, vocab, is_sampled, is_sliced):
    rng = np.random.default_rng(seed)
    count, most = len(lengths), max(lengths, default=0)
    tokens = rng.integers(0, vocab, (count, most + extra))
    roots = rng.integers(0, vocab, count)
    for row, length in zip(tokens, lengths, strict=True):
        row[length:] = -1
    probs = rng.dirichlet(np.ones(vocab), (count, most + extra + is_sliced))
    probs = probs[:, : most + extra] if is_sliced else probs
    given = {"probs": probs} if is_sampled else {}
    batch = mv.DraftBatch.chains(tokens, lengths, roots=roots, **given)
    single = [
        mv.Draft.chain(row[:length], probs[b, :length] if is_sampled else None, root=roots[b])
        for b, (row, length) in enumerate(zip(tokens, lengths, strict=True))
    ]
    noise = {"seeds": range(count), "positions": rng.integers(0, 99, count)}
    logits = rng.normal(0, 1, (count, most + 1, vocab)).astype(np.float32)
    found = mv.verify_batch(batch, logits, **noise)
    wanted = mv.verify_batch(single, logits, **noise)
    assert [bits(verdict) for verdict in found] == [bits(verdict) for verdict in wanted]
    assert [draft.tokens.tolist() for draft in batch] == [d.tokens.tolist() for d in single]


def test_lossy_acceptance_is_of_one_or_of_all():
    lossy = mv.lossy.threshold(0.2)
    params = mv.SamplingParams(temperature=0.8)
    cases = cases_of(5, ["chain", "iid", "unknown"], 6, torch.float32, [params], "probs64")
    given = [case.draft for case in cases], [case.logits for case in cases], params
    for each in (lossy, [lossy, None, lossy]):
        listed = each if isinstance(each, list) else [each] * 3
        found = mv.verify_batch(*given, lossy=each, **address(cases))
        wanted = [bits(alone(c, lossy=own)) for c, own in zip(cases, listed, strict=True)]
        assert [bits(verdict) for verdict in found] == wanted
        assert not found.lossless


def test_a_cut_batch_is_the_cut_verdicts():
    cases = cases_of(9, ["chain"] * 4, 3, torch.float32, [mv.SamplingParams()], "probs64")
    found = mv.verify_batch(
        [case.draft for case in cases], [case.logits for case in cases], **address(cases)
    )
    counts = np.maximum(1, found.num_accepted)
    cut = found.cut(counts)
    for verdict, own, count in zip(found, cut, counts.tolist(), strict=True):
        assert bits(own) == bits(verdict.cut(count))
