"""Calls at the Python gate, drawn by number: hostile arguments, sound steps, what keeps state."""

from __future__ import annotations

import copy
import operator
import pickle
import random
from typing import TYPE_CHECKING, Any

import numpy as np

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.verifier import growers
from mtp_verify.verifier.growers import TreeShape
from tests.fuzzing.values import CallerError, Values

if TYPE_CHECKING:
    from collections.abc import Callable

VALUES = Values()
OURS = [v for v in VALUES.kinds[3] if type(v).__module__.startswith("mtp_verify")]
TREE = mv.TokenTree([-1, 0, 0])
LOGITS = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
PROBS = np.full((2, 4), 0.25, np.float32)
NOISE = {"seed": 1, "position": 0}
RULES = [rule["name"] for rule in mv.rules()]
LAWS = ["deterministic", "chain", "iid", "swor", "top_plus_one", "mixed", "coupled", "unknown"]

# What an argument that nobody can use may raise.
LEGAL = (mv.MtpVerifyError, TypeError, ValueError, OverflowError, IndexError, CallerError)


class InvariantError(AssertionError):
    """An invariant that did not hold."""


def outcome(call: Callable[[], Any]) -> str:
    """How a call ended, as text that is equal for equal results.

    Raises:
        InvariantError: It ended as no call may.
    """
    try:
        result = call()
    except mv.errors.InternalError as error:
        raise InvariantError(str(error)) from error
    except LEGAL as error:
        return f"{type(error).__name__}: {error}"
    except BaseException as error:  # pyo3's PanicException is no Exception.
        message = f"{type(error).__name__}: {error}"
        raise InvariantError(message) from error
    return seen(result)


def seen(value: Any) -> str:
    """A result as text, to the bit."""
    if isinstance(value, mv.Verdict):
        parts = [value.tokens, value.path, value.logprobs, value.rule, value.top_logprobs]
        return " ".join(map(seen, parts))
    if isinstance(value, mv.VerdictBatch):
        return " ".join(seen(value[b]) for b in range(len(value)))
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{value.tobytes().hex()}"
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(seen, value)) + "]"
    if hasattr(value, "__dict__") and type(value).__module__.startswith("mtp_verify"):
        return type(value).__name__
    return repr(value)


def label(text: str) -> str:
    """The class of an outcome, for counting."""
    head = text.split(":")[0]
    return head if head.endswith("Error") or head == "CallerError" else "ok"


def _attend(
    pasts: Any, counts: Any, ancestors: Any, cos: Any, sin: Any, out: Any, heads: Any,
    given: Any, keys: Any, values: Any, first: Any,
) -> Any:  # fmt: skip
    attention = _core.Attention(pasts, counts, ancestors, cos=cos, sin=sin, out=out, heads=heads)
    attention.attend(given, _core.Entries(keys, values), first)
    return out


# name -> (function, usual arguments, usual keywords): what is pure gives the same twice.
PURE: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "TokenTree": (mv.TokenTree, ([-1, 0, 1],), {}),
    "children": (TREE.children, (0,), {}),
    "path": (TREE.path, (1,), {}),
    "Draft": (
        mv.Draft,
        (TREE, [-1, 1, 2]),
        {"law": "swor", "probs": PROBS, "rows": [0, 1, -1], "logits": None, "params": None,
         "vocab": None, "sampled": None},
    ),
    "Draft.chain": (mv.Draft.chain, ([1, 2],), {"probs": PROBS, "root": 3}),
    "DraftBatch": (
        mv.DraftBatch,
        ([0, 3], [-1, 0, 0], [-1, 1, 2], "swor"),
        {"probs": PROBS, "rows": [0, -1, -1], "logits": None, "params": None, "vocab": None,
         "sampled": None},
    ),
    "chains": (mv.DraftBatch.chains, ([[1, 2]], [2]), {"probs": PROBS[None], "roots": [5]}),
    "verify": (
        mv.verify,
        (mv.Draft.chain([1, 2], PROBS), LOGITS, mv.SamplingParams()),
        {"rule": "auto", "seed": 3, "position": 1, "history": [1, 2], "prompt_len": 1,
         "bitmask": None, "processors": (), "top_logprobs": 2, "lossy": None},
    ),
    "verify_batch": (
        mv.verify_batch,
        ([mv.Draft.chain([1, 2], PROBS)], LOGITS, mv.SamplingParams()),
        {"rule": "auto", "seeds": [3], "positions": [1], "lossy": None, "histories": [[1, 2]],
         "prompt_lens": [1], "bitmasks": None, "processors": (), "top_logprobs": 2},
    ),
    "expected_accepted": (
        mv.expected_accepted,
        (mv.Draft.chain([1, 2], PROBS), LOGITS, mv.SamplingParams(), "auto"),
        {"history": [1], "prompt_len": 0, "bitmask": None, "processors": ()},
    ),
    "alpha_star": (mv.verifier.alpha_star, (PROBS[0], PROBS[1], 2, "iid"), {}),
    "commit_plan": (mv.kv.commit_plan, (TREE, [2], 5), {}),
    "derive_seed": (mv.derive_seed, (1, 2), {}),
    "best_rule": (mv.best_rule, (mv.Draft.chain([1]),), {}),
    "SamplingParams": (
        mv.SamplingParams,
        (),
        {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2,
         "presence_penalty": 0.5, "frequency_penalty": 0.5, "no_repeat_ngram_size": 2,
         "logit_bias": {1: 0.5}, "banned": [2], "min_new_tokens": 1, "stop_ids": [3],
         "preset": "vllm"},
    ),
    "lossy.typical": (mv.lossy.typical, (0.3, 0.1), {}),
    "lossy.topk": (mv.lossy.topk, (2,), {}),
    "lossy.threshold": (mv.lossy.threshold, (0.3,), {}),
    "lossy.ensemble": (mv.lossy.ensemble, (0.5,), {}),
    "BlockTable": (mv.kv.BlockTable, (8, 2, True), {"window": 3}),
    "TreeShape.by_depth": (TreeShape.by_depth, (2, 1), {}),
    "TreeShape.stem": (TreeShape.stem, (2, 2), {}),
    "TreeShape.paths": (TreeShape.paths, (2, 2), {}),
    "TreeShape.optimal": (
        TreeShape.optimal,
        ([0.5, 0.2],),
        {"max_nodes": 4, "max_depth": 2, "draft_times": None, "verify_times": None},
    ),
    "allocate": (growers.allocate, ([[0.5, 0.1]], 2), {"minimum": 0}),
    "merge": (growers.merge, ([mv.Draft.chain([1, 2])],), {"max_nodes": 3}),
    "share": (growers.share, ([growers.Heap(3)], 2), {"minimum": 0}),
    "Chain": (
        growers.Chain,
        (3,),
        {"greedy": None, "min_top": 0.0, "min_path": 0.0, "root": 1, "eos_ids": [2],
         "params": None, "vocab": None, **NOISE},
    ),
    "Fixed": (
        growers.Fixed,
        (TreeShape.by_depth(2, 1), "swor"),
        {"samples": 1, "root": 1, "eos_ids": (), "params": None, "vocab": None, **NOISE},
    ),
    "Heap": (
        growers.Heap,
        (4,),
        {"max_depth": 3, "max_children": 2, "width": 2, "min_score": 0.0, "times": (), "root": 1,
         "eos_ids": (), "params": None, "vocab": None},
    ),
    "Stochastic": (
        growers.Stochastic,
        (4,),
        {"max_depth": 3, "min_value": 0.0, "lookahead": 2, "root": 1, "eos_ids": (),
         "params": None, "vocab": None, **NOISE},
    ),
    "Union": (
        growers.Union,
        (mv.Draft.chain([1]), [1]),
        {"max_nodes": 4, "eos_ids": (), "params": None, "vocab": None, **NOISE},
    ),
    "Coupled": (
        growers.Coupled,
        (TreeShape.by_depth(2),),
        {"root": 1, "eos_ids": (), "params": None, "vocab": None, **NOISE},
    ),
    "core.draw": (_core.draw, (LOGITS[0], mv.SamplingParams(), 1, 2, 3), {}),
    "core.shaped_row": (_core.shaped_row, (LOGITS[0], mv.SamplingParams()), {}),
    "core.top_tokens": (_core.top_tokens, (LOGITS, 2), {}),
    "core.NGramIndex": (_core.NGramIndex, (3, 1, 64), {}),
    "core.SuffixIndex": (_core.SuffixIndex, (1, 32, 1.0, 0.1, 4, 64), {}),
    "core.SuffixStore": (_core.SuffixStore, (256, 4), {}),
    "core.attend": (
        _attend,
        ([1, 0], [1, 2], np.ones((2, 2, 2), bool), np.ones((3, 4), np.float32),
         np.ones((3, 4), np.float32), np.ones((3, 8), np.float32), 2, np.ones((3, 16), np.float32),
         np.ones((2, 1, 3, 4), np.float32), np.ones((2, 1, 3, 4), np.float32), 0),
        {},
    ),
}  # fmt: skip


def hostile(rng: random.Random) -> str:
    """One function with some of its arguments replaced by anything."""
    name = rng.choice(list(PURE))
    function, usual, options = PURE[name]
    given = [VALUES.near(rng, value) for value in usual]
    chosen = {key: VALUES.near(rng, value) for key, value in options.items() if rng.random() < 0.5}
    if "seed" in options:
        chosen = {**{key: options[key] for key in NOISE if key in options}, **chosen}
    if "seeds" in options or "max_nodes" in options:
        chosen = {**options, **chosen}
    if given and rng.random() < 0.1:
        del given[rng.randrange(len(given)) :]
    elif rng.random() < 0.1:
        given.append(VALUES.any(rng))

    def call() -> Any:
        return function(*given, **chosen)

    first = outcome(call)
    if first != (again := outcome(call)):
        message = f"{name}: {first[:300]}, then {again[:300]}"
        raise InvariantError(message)
    return f"{name} {label(first)}"


def anything(rng: random.Random) -> str:
    """What Python does with any object: copies, pickles, texts, comparisons, lengths, items."""
    value = rng.choice(OURS)
    other = VALUES.any(rng)
    operations = [
        repr, str, hash, len, bool, iter, copy.copy, copy.deepcopy, pickle.dumps, dir,
        lambda v: v == other, lambda v: v != other, lambda v: v < other, lambda v: v[other],
        lambda v: v(), lambda v: type(v)(other), lambda v: type(v).__new__(type(v)),
        lambda v: operator.index(v), lambda v: object.__new__(type(v)),
        lambda v: [getattr(v, name) for name in dir(v) if not name.startswith("__")],
        lambda v: v.__reduce_ex__(2),
        lambda v: setattr(v, "tokens", other),
    ]  # fmt: skip
    operation = rng.choice(operations)
    try:
        operation(value)
    except mv.errors.InternalError as error:
        raise InvariantError(str(error)) from error
    except Exception as error:  # noqa: BLE001 - Python's own answers are of every class.
        return f"anything {type(error).__name__}"
    except BaseException as error:
        raise InvariantError(repr(error)) from error
    return "anything ok"


def sound(rng: random.Random) -> str:
    """A legal step: alone, again, and in a batch; what it gives must be possible."""
    vocab, count = rng.randint(1, 9), rng.randint(0, 6)
    numpy = np.random.default_rng(rng.getrandbits(32))
    law = rng.choice(("deterministic", "chain", "iid", "unknown", "coupled"))
    parents = [-1] + [n - 1 if law == "chain" else rng.randrange(n) for n in range(1, count + 1)]
    tree = mv.TokenTree(parents)
    tokens = [-1] + [0] * count
    for node in range(count + 1):
        children = tree.children(node)
        fresh = rng.sample(range(vocab), min(vocab, len(children)))
        for place, child in enumerate(children):
            repeats = law in ("iid", "unknown") or place >= vocab
            tokens[child] = rng.randrange(vocab) if repeats else fresh[place]
    logits = (numpy.normal(size=(count + 1, vocab)) * rng.choice((1, 5, 30))).astype(
        rng.choice((np.float32, np.float16))
    )
    probs = numpy.dirichlet(np.ones(vocab), count + 1)
    options: dict[str, Any] = {}
    if law in ("chain", "iid"):
        options["probs"] = probs.astype(rng.choice((np.float32, np.float64)))
    try:
        draft = mv.Draft(tree, tokens, law=law, **options)
    except mv.errors.DraftError:
        return "sound: no such draft"  # More children than tokens, or a probability of 0.
    params = mv.SamplingParams(
        temperature=rng.choice((0, 0.2, 1, 1.5)), top_k=rng.choice((0, 0, 2)),
        top_p=rng.choice((1, 1, 0.8)), preset=rng.choice(("vllm", "transformers")),
    )  # fmt: skip
    besides = {"greedy", "gbv"}
    siblings = [[tokens[child] for child in tree.children(node)] for node in range(count + 1)]
    if any(len(set(family)) < len(family) for family in siblings):
        besides.add("global_resolution")  # It reads rows of equal paths as equal.
    legal = [r["name"] for r in mv.rules() if law in r["laws"] and r["name"] not in besides]
    rule = rng.choice(["auto", *legal])
    seed, position = rng.getrandbits(64), rng.randrange(1000)
    noise = {"seed": seed, "position": position}
    verdict = mv.verify(draft, logits, params, rule=rule, **noise)
    again = mv.verify(draft, logits, params, rule=rule, **noise)
    batch = mv.verify_batch(
        [draft, draft], [logits, logits], params, rule=rule, seeds=[seed] * 2,
        positions=[position] * 2,
    )  # fmt: skip
    if not seen(verdict) == seen(again) == seen(batch[0]) == seen(batch[1]):
        message = f"another verdict: {verdict} {again} {batch[0]} {batch[1]}"
        raise InvariantError(message)
    nodes = [0, *verdict.path.tolist()]
    for node, token, logprob in zip(nodes, verdict.tokens, verdict.logprobs, strict=True):
        p = _core.shaped_row(logits[node], params)[token]
        if not (p > 0 and logprob <= 0 and abs(np.log(p) - logprob) < 1e-3 * (1 - logprob)):
            message = f"token {token} after node {node}: p = {p}, log-probability {logprob}"
            raise InvariantError(message)
    mv.kv.commit_plan(tree, verdict.path, position)
    if law != "coupled" or rule not in ("auto", "coupled"):
        mean = mv.expected_accepted(draft, logits, params, rule)
        if not 0 <= mean <= max(tree.depths) + 1e-9:
            message = f"a mean of {mean} accepted tokens, depth {max(tree.depths)}"
            raise InvariantError(message)
    return f"sound {verdict.rule}"


def table(rng: random.Random) -> str:
    """A block table under any calls: a refused one changes nothing."""
    window = rng.choice((None, 1, 3))
    blocks = mv.kv.BlockTable(rng.randint(1, 12), rng.randint(1, 4), rng.random() < 0.5, window)
    last = "ok"

    def state() -> Any:
        known = [
            seq for seq in range(4) if label(outcome(lambda s=seq: blocks.lengths([s]))) == "ok"
        ]
        return blocks.num_free, known, seen(blocks.lengths(known)), seen(blocks.block_table(known))

    for _ in range(rng.randint(1, 8)):
        seq, n = VALUES.near(rng, rng.randrange(4)), VALUES.near(rng, rng.randrange(6))
        seqs, counts = VALUES.near(rng, [0, 1]), VALUES.near(rng, [1, 2])
        tokens = VALUES.near(rng, [0] * n if isinstance(n, int) and 0 <= n < 9 else None)
        prompt = {
            "keys": VALUES.near(rng, {"salt": "a"}),
            "items": VALUES.near(rng, [(0, 1, "b")]),
            "max_cached": VALUES.near(rng, 2),
        }
        tree, path = VALUES.near(rng, TREE), VALUES.near(rng, [2])
        call = rng.choice([
            lambda s=seq, n=n, t=tokens, k=prompt: blocks.add_sequence(s, n, t, **k),
            lambda t=tokens, k=prompt: blocks.num_cached(t, **k),
            lambda: blocks.reset_prefix_cache(),
            lambda s=seq, n=n: blocks.fork(s, n),
            lambda s=seq, n=n: blocks.reserve(s, n),
            lambda s=seqs, n=counts: blocks.reserve_batch(s, n),
            lambda s=seq, t=tree, p=path, k=tokens: blocks.commit(s, t, p, k),
            lambda s=seqs, d=tokens, v=path: blocks.commit_batch(s, d, v),
            lambda s=seq, n=n: blocks.rollback(s, n),
            lambda s=seq: blocks.release(s),
            lambda s=seqs, o=counts: blocks.block_table(s, out=o),
            lambda s=seqs, o=tokens: blocks.slot_mapping(s, out=o),
            lambda s=seqs, o=path: blocks.lengths(s, out=o),
        ])  # fmt: skip
        before = state()
        last = label(outcome(call))
        outcome(blocks.check_integrity)
        if last != "ok" and state() != before:
            message = f"a refused call changed the table: {before}, then {state()}"
            raise InvariantError(message)
    return f"table {last}"


def index(rng: random.Random) -> str:
    """An index of either kind: what is refused is not appended."""
    history = rng.choice((_core.NGramIndex(3, 1, 64), _core.SuffixIndex(1, 8, 1.0, 0.1, 4, 64)))
    last = "ok"
    for _ in range(rng.randint(1, 4)):
        before = len(history)
        tokens = VALUES.near(rng, [1, 2, 1, 2])
        last = label(outcome(lambda t=tokens: history.extend(t)))
        if last != "ok" and len(history) != before:
            message = f"{before} tokens before a refused call, {len(history)} after it"
            raise InvariantError(message)
        size, depth, stop = (VALUES.near(rng, usual) for usual in (4, 3, [9]))
        is_suffix = isinstance(history, _core.SuffixIndex)
        given = (size, depth, stop) if is_suffix else (size, stop)
        last = label(outcome(lambda g=given: history.propose(*g)))
    return f"index {last}"


def grower(rng: random.Random) -> str:
    """A grower that gets any rows: it goes on, or stays as it was."""
    noise = {"seed": rng.getrandbits(64), "position": rng.randrange(99)}
    made = rng.choice([
        lambda: growers.Chain(3, **noise),
        lambda: growers.Fixed(TreeShape.by_depth(2, 1), rng.choice(LAWS[2:5]), **noise),
        lambda: growers.Heap(4),
        lambda: growers.Stochastic(4, **noise),
        lambda: growers.Union(mv.Draft.chain([1, 2]), [1, 1], **noise),
        lambda: growers.Coupled(TreeShape.by_depth(2, 1), **noise),
    ])()  # fmt: skip
    last = "ok"
    for _ in range(6):
        nodes = made.frontier()
        before = (nodes, seen(made.tokens), made.law)
        numpy = np.random.default_rng(rng.getrandbits(32))
        rows = numpy.normal(size=(len(nodes), 5)).astype(np.float32)
        given = VALUES.near(rng, rows)
        last = label(outcome(lambda r=given: made.extend(r)))
        if last != "ok" and (made.frontier(), seen(made.tokens), made.law) != before:
            message = "a refused row changed the grower"
            raise InvariantError(message)
    draft = made.finish()
    logits = np.zeros((draft.num_nodes, 5), np.float32)
    outcome(lambda: mv.verify(draft, logits, **noise))
    return f"grower {last}"


CASES = [(hostile, 60), (anything, 10), (sound, 12), (table, 8), (index, 5), (grower, 5)]


def run(seed: int, case: int) -> str:
    """One case; what it was and how it ended.

    Raises:
        InvariantError: An invariant did not hold.
    """
    rng = random.Random((seed << 40) + case)
    kind = rng.choices([kind for kind, _ in CASES], [weight for _, weight in CASES])[0]
    try:
        return kind(rng)
    except Exception as error:
        if isinstance(error, InvariantError):
            raise
        message = f"{kind.__name__}: {type(error).__name__}: {error}"
        raise InvariantError(message) from error
