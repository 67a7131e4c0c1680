"""Tables in the place of models, drafters over them, and the law of decoding them token by token.

A case is a decoder with requests. Its law is that of all texts together, found by running the
shipped loop once for each branch of its chance (`mtp_verify.testing.loop_law`); the law that it
must have is multiplied out here from the table's rows, one token after the other. A case may stop
after some steps: what it has not emitted then is drawn from the table.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.decoder.constraints import Matcher
from mtp_verify.drafters import Combined, Heads, Model, ModelTree, NGram, Recycling, Suffix
from mtp_verify.testing import BatchTableTarget, TableCache, TableTarget, loop_law
from mtp_verify.verifier import growers
from mtp_verify.verifier.growers import TreeShape
from tests.models import StubDrafter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mtp_verify.caches.settings import Paged

WARM = mv.SamplingParams()


class Table:
    """Rows that depend on the whole path: a wrong path, position or order shows.

    Args:
        vocab: V.
        seed: of the rows.
        spread: of the logits.
    """

    def __init__(self, vocab: int, seed: int, spread: float = 1.2) -> None:
        self.vocab = vocab
        rng = np.random.default_rng(seed)
        self.pool = torch.from_numpy((rng.normal(size=(211, vocab)) * spread).astype(np.float32))

    @staticmethod
    def step(place: int, token: int) -> int:
        return (place * 31 + token + 1) % 211

    def place(self, path: Iterable[int]) -> int:
        place = 0
        for token in path:
            place = self.step(place, token)
        return place

    def rows(self, path: Sequence[int]) -> torch.Tensor:
        return self.pool[self.place(path)]

    def hidden(self, path: Sequence[int], layer: int) -> torch.Tensor:
        """The place itself, which `TableHead` goes on from."""
        return torch.tensor([float(self.place(path))])


class BoundedCache(TableCache):
    """A cache that breaks when more is written than it has room for."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.tokens = _Bounded(capacity)


class _Bounded(list):
    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def extend(self, tokens: Iterable[int]) -> None:
        super().extend(tokens)
        assert len(self) <= self.capacity, "more entries than there is room for"


class TableModel(BatchTableTarget):
    """A table as target.

    Args:
        table: of its rows.
        capacity: of each request's own cache, or None.
        fails: whether a forward over these tokens fails; asked once for each position.
    """

    def __init__(
        self,
        table: Table,
        capacity: int | None = None,
        fails: Callable[[list[int]], bool] | None = None,
    ) -> None:
        super().__init__(table.rows, table.vocab, hidden=table.hidden)
        self.capacity = capacity
        self.fails = fails
        self.has_failed: set[int] = set()

    def new_cache(self, past: Any = None) -> TableCache:
        return super().new_cache(past) if self.capacity is None else BoundedCache(self.capacity)

    def forward(self, tokens: torch.Tensor, *args: Any, **options: Any) -> Any:
        cache = args[2]
        if isinstance(cache, TableCache):
            self._fail(cache.length, tokens)
        return super().forward(tokens, *args, **options)

    def forward_slots(self, tokens: torch.Tensor, *args: Any, **options: Any) -> Any:
        self._fail(args[2].lengths[0], tokens)
        return super().forward_slots(tokens, *args, **options)

    def _fail(self, place: int, tokens: torch.Tensor) -> None:
        if self.fails and place not in self.has_failed and self.fails(tokens[0].tolist()):
            self.has_failed.add(place)
            raise RuntimeError("out of memory")


class TableHead:
    """A head whose rows are another table's, at the place that the target's hidden state names."""

    hidden_layers = (-1,)
    max_depth = None
    vocab = None
    context_tokens = False

    def __init__(self, table: Table) -> None:
        self.table = table
        self.spec = self.known_sizes = self
        self.vocab_size = table.vocab

    def new_state(self) -> Any:
        return _HeadState()

    def read(self, state: Any, hidden: Any, tokens: torch.Tensor) -> torch.Tensor:
        state.places = [self.table.step(int(hidden[0][-1, 0]), int(tokens[-1]))]
        return self.table.pool[state.places]

    def step(self, state: Any, parents: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
        pairs = zip(parents, tokens.tolist(), strict=True)
        places = [self.table.step(state.places[parent], token) for parent, token in pairs]
        state.places += places
        return self.table.pool[places]

    def read_batch(self, states: Any, hidden: Any, tokens: Any) -> list[torch.Tensor]:
        return [self.read(*own) for own in zip(states, hidden, tokens, strict=True)]

    def step_batch(self, states: Any, parents: Any, tokens: Any) -> list[torch.Tensor]:
        return [self.step(*own) for own in zip(states, parents, tokens, strict=True)]


class _HeadState:
    def __init__(self) -> None:
        self.places: list[int] = []
        self.first = 0

    @property
    def num_nodes(self) -> int:
        return len(self.places)


class Grown(StubDrafter):
    """Drafts with a grower over a table.

    Args:
        table: of its rows.
        laws: of its drafts.
        make: the grower, given the request, the budget and what all growers take.
    """

    makes_trees = True

    def __init__(self, table: Table, laws: tuple[str, ...], make: Callable[..., Any]) -> None:
        super().__init__()
        self.table, self.laws, self.make = table, laws, make

    def draft(self, request: Any, budget: int) -> mv.Draft:
        if budget < 1:
            return super().draft(request, budget)
        own = {"eos_ids": request.eos_ids, "seed": request.seed, "position": request.position}
        grower = self.make(request, budget, own)

        def source(paths: list[list[int]]) -> torch.Tensor:
            return torch.stack([self.table.rows((*request.tokens, *path)) for path in paths])

        return grower.grow(source)


@dataclass
class Allowed:
    """A constraint made of a function: which tokens may follow a path, none at a dead end."""

    vocab_size: int
    after: Callable[[tuple[int, ...]], set[int]]
    stop_ids: frozenset[int] = frozenset()

    def start(self, prompt: Sequence[int]) -> Matcher:
        return _AllowedMatcher(self)


class _AllowedMatcher(Matcher):
    def __init__(self, rule: Allowed) -> None:
        super().__init__(rule.vocab_size)
        self.rule = rule
        self.path: tuple[int, ...] = ()

    @property
    def has_ended(self) -> bool:
        return bool(self.path) and self.path[-1] in self.rule.stop_ids

    def fill(self, mask: np.ndarray) -> None:
        tokens = range(self.vocab_size) if self.has_ended else self.rule.after(self.path)
        for token in tokens:
            mask.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)

    def accept(self, token: int) -> bool:
        if self.has_ended or token not in self.rule.after(self.path):
            return False
        self.path += (token,)
        return True

    def rollback(self, count: int) -> None:
        self.path = self.path[: len(self.path) - count]


@dataclass(frozen=True)
class Case:
    """A decoder and its requests.

    Attributes:
        drafter: makes the drafter anew for each run; None decodes plainly.
        rule: of verification.
        target: of the rows.
        prompts: of the requests.
        length: most new tokens of each.
        looked_at: tokens whose law is compared.
        steps: after which what has not ended is cancelled; None runs to the end.
        eos: the token that ends a text, or None.
        params: of the target's rows.
        constraint: of all requests, or None.
        capacity: of each request's own cache, or None.
        pool: of one cache for all, or None.
        options: further ones of `Decoder`; called anew for each run.
        script: what happens before it is stepped to the end, given the decoder and the requests'
            numbers; returns what has ended in between.
        fails: see `TableModel`.
        merges_errors: texts that end with one error count as one.
    """

    drafter: Callable[[], Any]
    rule: str = "auto"
    target: Table = field(default_factory=lambda: Table(2, 1))
    prompts: tuple[tuple[int, ...], ...] = ((1, 0, 1),)
    length: int = 3
    looked_at: int | None = None
    steps: int | None = None
    eos: int | None = None
    params: mv.SamplingParams = WARM
    constraint: Allowed | None = None
    capacity: int | None = None
    pool: Paged | None = None
    options: Callable[[], dict[str, Any]] = dict
    script: Callable[[Any, list[int]], dict[int, Any]] | None = None
    fails: Callable[[list[int]], bool] | None = None
    merges_errors: bool = False

    def run(self) -> tuple[Any, ...]:
        """Each request's tokens, and how it ended."""
        batching = "auto" if self.pool or len(self.prompts) > 1 else "each"
        decoder = mv.Decoder(
            TableModel(self.target, self.capacity, self.fails), self.drafter(), self.params,
            self.rule, cache=self.pool, batching=batching, **self.options(),
        )  # fmt: skip
        numbers = [
            decoder.submit(
                list(prompt), max_new_tokens=self.length, seed=seed, constraint=self.constraint,
                eos_token_id=() if self.eos is None else self.eos,
            )
            for seed, prompt in enumerate(self.prompts)
        ]  # fmt: skip
        results = {} if self.script is None else self.script(decoder, numbers)
        for _ in range(100 if self.steps is None else self.steps):
            if not decoder.num_unfinished:
                break
            with contextlib.suppress(RuntimeError):
                decoder.step()
        results |= decoder.results()
        outcome = []
        for number in numbers:
            found = results.get(number) or decoder.cancel(number)
            error = found.errors[0]
            slug = None if error is None else getattr(error, "slug", None) or repr(error)
            outcome.append((tuple(found.tokens[0]), found.finish_reasons[0], slug))
        return tuple(outcome)

    def plain(self, prompt: Sequence[int], string: tuple[int, ...] = ()) -> Counter[Any]:
        """The law of what follows a string, token by token from the table's rows."""
        if self.eos is not None and self.eos in string:
            return Counter({(string, "stop", None): 1.0})
        if len(string) == self.length:
            return Counter({(string, "length", None): 1.0})
        pool = self.pool
        if pool and len(prompt) + len(string) > pool.num_blocks * pool.block_size:
            return Counter({(string, "error", "out_of_blocks"): 1.0})
        row = self.target.rows((*prompt, *string)).numpy().copy()
        if self.constraint is not None:
            allowed = self.constraint.after(string)
            if not allowed:
                return Counter({(string, "error", "dead_end"): 1.0})
            row[[token for token in range(len(row)) if token not in allowed]] = -np.inf
        if np.isnan(row).any():
            return Counter({(string, "error", "row_not_finite"): 1.0})
        shaped = _core.shaped_row(row, self.params)
        law: Counter[Any] = Counter()
        for token in np.flatnonzero(shaped).tolist():
            share = float(shaped[token] / shaped.sum())
            for outcome, weight in self.plain(prompt, (*string, token)).items():
                law[outcome] += share * weight
        return law

    def distance(self) -> float:
        """Total variation between the loop's law and that of decoding token by token."""
        found: Counter[Any] = Counter()
        for outcome, weight in loop_law(self.run).items():
            parts = [
                self.plain(prompt, tokens)
                if finish == "cancelled"
                else {(tokens, finish, error): 1.0}
                for prompt, (tokens, finish, error) in zip(self.prompts, outcome, strict=True)
            ]
            self._add(found, parts, weight)
        wanted: Counter[Any] = Counter()
        self._add(wanted, [self.plain(prompt) for prompt in self.prompts], 1.0)
        return sum(abs(found[key] - wanted[key]) for key in found.keys() | wanted.keys()) / 2

    def _add(self, law: Counter[Any], parts: list[Any], weight: float) -> None:
        """Add the product of laws, cut to what is looked at."""
        limit = self.length if self.looked_at is None else self.looked_at
        for outcomes in itertools.product(*(part.items() for part in parts)):
            key = tuple(
                (
                    () if self.merges_errors and end[0] == "error" else tokens[:limit],
                    *(end if len(tokens) <= limit else ()),
                )
                for (tokens, *end), _ in outcomes
            )
            law[key] += weight * float(np.prod([share for _, share in outcomes]))

    def but(self, **changes: Any) -> Case:
        return replace(self, **changes)


def over(vocab: int, other: Table | None = None) -> dict[str, tuple[Callable[[], Any], list[str]]]:
    """The drafters over a table, each with the rules that it is tried with."""
    other = other or Table(vocab, 2)

    def model(num_tokens=3, params=WARM, kind=Model, **options):
        options |= {"params": params}
        if kind is Model:
            options |= {"num_tokens": num_tokens}
        return lambda: kind(TableTarget(other.rows, vocab), **options)

    def head(**options):
        options = {"params": WARM, **options}
        return lambda: Heads(TableHead(other), **options)

    def grown(law, make):
        return lambda: Grown(other, (law,), make)

    def stochastic(request, budget, own):
        return growers.Stochastic(min(3, budget), **own)

    def union(request, budget, own):
        hits = mv.Draft.chain([0], root=request.tokens[-1])
        return growers.Union(hits, [1, 1], max_nodes=min(3, budget), **own)

    def shape(law, *counts):
        fixed = TreeShape.by_depth(*counts)
        return lambda request, budget, own: growers.Fixed(fixed.cut(budget, budget), law, **own)

    return {
        "plain": (lambda: None, ["auto", "coupled"]),
        "chain": (model(), ["token", "block", "gbv"]),
        "doubtful chain": (model(min_confidence=0.6), ["auto"]),
        "greedy chain": (model(params=None), ["auto"]),
        "best-first tree": (model(kind=ModelTree, max_nodes=3), ["auto"]),
        "n-gram": (lambda: NGram(num_tokens=2), ["auto"]),
        "suffix": (lambda: Suffix(3, max_nodes=3, min_match=1), ["auto"]),
        "recycling": (lambda: Recycling(max_nodes=3), ["auto"]),
        "head chain": (head(num_tokens=2), ["block"]),
        "chain shaped like the target": (model(params="target"), ["token"]),
        "head shaped like the target": (head(num_tokens=2, params="target"), ["block"]),
        "head tree shaped like the target": (
            head(shape=TreeShape.by_depth(2, 1), law="top_plus_one", params="target"),
            ["lifted_hu"],
        ),
        "head heap": (head(max_nodes=3), ["auto"]),
        "head swor": (head(shape=TreeShape.by_depth(2, 1)), ["rrsw", "traversal", "coupled"]),
        "head iid": (
            head(shape=TreeShape.by_depth(2, 1), law="iid"),
            ["specinfer", "kseq", "lifted", "global_resolution"],
        ),
        "head paths": (
            head(shape=TreeShape.paths(2, 2), law="iid"), ["gbv", "global_resolution"],
        ),
        "head top-plus-one": (
            head(shape=TreeShape.by_depth(2, 1), law="top_plus_one"), ["hu", "lifted_hu"],
        ),
        "shape": (grown("swor", shape("swor", 2, 1)), ["auto"]),
        "stochastic": (grown("swor", stochastic), ["auto", "topdown"]),
        "union": (grown("mixed", union), ["auto", "hu"]),
        "first": (
            lambda: Combined([Suffix(2, min_match=1), model(2)()]), ["auto", "token"],
        ),
        "merged": (
            lambda: Combined([NGram(num_tokens=2), Suffix(2, min_match=1)], "merge"), ["auto"],
        ),
    }  # fmt: skip
