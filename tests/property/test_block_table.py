"""A stateful machine over the block table's Python API, against lists and an array of contents."""

import pickle

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import mtp_verify as mv

SEQS = st.integers(0, 4)
TOKENS = st.lists(st.integers(0, 1), max_size=9)


KEYS = st.dictionaries(st.sampled_from(["salt", "adapter"]), st.sampled_from("ab"), max_size=1)
# Gaps, lengths and digests of items.
ITEMS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.sampled_from("ab")), max_size=2)

# What an entry stands for: its token, the item behind it, and the weights that computed it.
Entry = tuple[int, object, int]


class Model:
    """One sequence: what its entries stand for, and its open slots.

    `keys` stand before all of them; a rollback to `base`, or to anywhere behind it, is promised.
    """

    def __init__(self, keys: object, text: tuple[Entry, ...], written: int, base: int) -> None:
        self.keys = keys
        self.text = text
        self.written = written
        self.base = base
        self.slots: list[int] = []

    def content(self, entry: int) -> tuple[object, ...]:
        return self.keys, self.text[: entry + 1]


class Machine(RuleBasedStateMachine):
    """An entry's content is all that it depends on; the pool holds what was written where."""

    @initialize(
        num_blocks=st.integers(1, 12),
        block_size=st.integers(1, 4),
        prefix_cache=st.booleans(),
        window=st.none() | st.integers(1, 9),
    )
    def start(
        self, num_blocks: int, block_size: int, prefix_cache: bool, window: int | None
    ) -> None:
        self.table = mv.kv.BlockTable(num_blocks, block_size, prefix_cache, window)
        assert self.table.window == window
        self.num_blocks = num_blocks
        self.weights = 0
        self.pool: list[object] = [None] * (num_blocks * block_size)
        self.models: dict[int, Model] = {}

    def refused(self, call, *kinds: type[Exception]) -> None:
        """The call must fail, and change nothing that can be seen."""
        before = self.seen()
        with pytest.raises(kinds or mv.errors.CacheError):
            call()
        assert self.seen() == before

    def seen(self) -> tuple[object, ...]:
        seqs = sorted(self.models)
        blocks = self.table.block_table(seqs).tolist()
        return self.table.num_free, blocks, self.table.lengths(seqs).tolist()

    def attempt(self, call):
        """The call's result, or None if the pool is too small for it."""
        before = self.seen()
        result = error = None
        try:
            result = call()
        except mv.errors.OutOfBlocksError as caught:
            error = caught
        if error is not None:
            assert error.missing > 0
            assert set(error.holders) <= set(self.models)
            assert self.seen() == before
        return result

    def first_seen(self, length: int) -> int:
        """The first entry that the token behind `length` entries sees."""
        return 0 if self.table.window is None else max(0, length + 1 - self.table.window)

    @rule(seq=SEQS, tokens=TOKENS, keys=KEYS, gaps=ITEMS, most=st.none() | st.integers(0, 9))
    def add(
        self,
        seq: int,
        tokens: list[int],
        keys: dict[str, str],
        gaps: list[tuple[int, int, str]],
        most: int | None,
    ) -> None:
        items, end = [], 0
        for gap, length, key in gaps:
            items.append((end + gap, end + gap + length, key))
            end += gap + length
        given = {"keys": keys, "items": items, "max_cached": most}

        def call():
            return self.table.add_sequence(seq, len(tokens), tokens, **given)

        if end > len(tokens):
            self.refused(call, mv.errors.CacheError, mv.errors.ParamsError)
            self.refused(lambda: self.table.num_cached(tokens, **given), mv.errors.ParamsError)
            return
        promised = self.table.num_cached(tokens, **given)
        if seq in self.models:
            self.refused(call)
        elif (cached := self.attempt(call)) is not None:
            assert cached == promised <= (len(tokens) if most is None else most)
            behind = {
                entry: (key, entry - start)
                for start, stop, key in items
                for entry in range(start, stop)
            }
            text = ((token, behind.get(n), self.weights) for n, token in enumerate(tokens))
            self.models[seq] = Model(sorted(keys.items()), tuple(text), cached, cached)

    @rule()
    def new_weights(self) -> None:
        before = self.seen()
        self.table.reset_prefix_cache()
        assert self.seen() == before
        assert self.table.reset_prefix_cache() == 0
        self.weights += 1

    @rule(parent=SEQS, child=SEQS)
    def fork(self, parent: int, child: int) -> None:
        model = self.models.get(parent)
        if model is None or model.slots or child in self.models:
            self.refused(lambda: self.table.fork(parent, child))
            return
        self.table.fork(parent, child)
        self.models[child] = Model(model.keys, model.text, model.written, model.base)

    @rule()
    def move_to_another_process(self) -> None:
        moved = pickle.loads(pickle.dumps(self.table))
        assert moved == self.table
        self.table = moved

    @rule(seq=SEQS, n=st.integers(0, 6))
    def reserve(self, seq: int, n: int) -> None:
        if seq not in self.models or self.models[seq].slots or n == 0:
            self.refused(
                lambda: self.table.reserve(seq, n), mv.errors.CacheError, mv.errors.ParamsError
            )
        elif (reservation := self.attempt(lambda: self.table.reserve(seq, n))) is not None:
            self.opened([seq], [reservation.slots], reservation.copies)

    @rule(counts=st.lists(st.integers(1, 4), min_size=5, max_size=5))
    def reserve_batch(self, counts: list[int]) -> None:
        seqs = [seq for seq, model in self.models.items() if not model.slots]
        counts = counts[: len(seqs)]
        batch = self.attempt(lambda: self.table.reserve_batch(seqs, counts))
        if batch is not None:
            assert np.diff(batch.offsets).tolist() == counts
            self.opened(seqs, [part.slots for part in batch], batch.copies)

    def opened(self, seqs: list[int], slots: list[np.ndarray], copies: np.ndarray) -> None:
        for source, to in copies:
            self.pool[to] = self.pool[source]
        for seq, own in zip(seqs, slots, strict=True):
            self.models[seq].slots = own.tolist()
            for slot in own:
                self.pool[slot] = ("a node of", seq)

    def forward(self, seq: int, draft: mv.Draft) -> list[tuple[Entry, ...]]:
        """Writes what the last forward computes: the prompt's rest and the nodes."""
        model = self.models[seq]
        size = self.table.block_size
        blocks = self.table.block_table([seq])[0]
        for entry in range(model.written, len(model.text)):
            self.pool[blocks[entry // size] * size + entry % size] = model.content(entry)
        texts = []
        for node, slot in enumerate(model.slots):
            path = [0, *draft.tree.path(node)] if node else [0]
            new = tuple((token, None, self.weights) for token in draft.tokens[path].tolist())
            texts.append(model.text + new)
            self.pool[slot] = model.keys, texts[-1]
        return texts

    @rule(seq=SEQS, data=st.data())
    def commit(self, seq: int, data: st.DataObject) -> None:
        model = self.models.get(seq)
        if model is None or not model.slots:
            self.refused(lambda: self.table.commit(seq, mv.TokenTree([-1]), []))
            return
        draft, path = self.draw(len(model.slots), data)
        wrong = mv.TokenTree([*draft.tree.parents, 0])
        self.refused(lambda: self.table.commit(seq, wrong, path))
        self.refused(lambda: self.table.commit(seq, draft.tree, [*path, 0]))
        texts = self.forward(seq, draft)
        plan = self.table.commit(seq, draft.tree, path, draft.tokens)
        self.committed(seq, texts[path[-1] if path else 0], plan)

    def draw(self, nodes: int, data: st.DataObject) -> tuple[mv.Draft, list[int]]:
        parents = [-1, *(data.draw(st.integers(max(0, i - 2), i - 1)) for i in range(1, nodes))]
        tokens = data.draw(st.lists(st.integers(0, 9), min_size=nodes, max_size=nodes, unique=True))
        draft = mv.Draft(mv.TokenTree(parents), tokens)
        return draft, draft.tree.path(data.draw(st.integers(0, nodes - 1)))

    @rule(data=st.data(), seed=st.integers(0, 2**32), is_packed=st.booleans())
    def commit_batch(self, data: st.DataObject, seed: int, is_packed: bool) -> None:
        seqs = [seq for seq, model in self.models.items() if model.slots]
        drafts = [self.draw(len(self.models[seq].slots), data)[0] for seq in seqs]
        sizes = [draft.num_nodes for draft in drafts]
        logits = np.zeros((sum(sizes), 10), np.float32)
        noise = {"seeds": range(seed, seed + len(seqs)), "positions": [0] * len(seqs)}
        verdicts = mv.verify_batch(drafts, logits, **noise)
        if is_packed:
            parents = [parent for draft in drafts for parent in draft.tree.parents]
            tokens = [token for draft in drafts for token in draft.tokens]
            offsets = np.cumsum([0, *sizes])
            drafts = mv.DraftBatch(offsets, parents, tokens, "deterministic")
        else:
            verdicts = list(verdicts)
        if seqs:
            twice = [*seqs, seqs[0]], [*drafts, drafts[0]], [*verdicts, verdicts[0]]
            self.refused(lambda: self.table.commit_batch(*twice))
            # Plans of fewer or other sequences than those of the drafts.
            more, fewer = [*seqs, 99], seqs[1:]
            self.refused(
                lambda: self.table.commit_batch(more, drafts, verdicts), mv.errors.DraftError
            )
            self.refused(
                lambda: self.table.commit_batch(fewer, drafts, verdicts), mv.errors.DraftError
            )
            unknown = [*seqs[1:], 99]
            self.refused(lambda: self.table.commit_batch(unknown, drafts, verdicts))
        texts = [self.forward(seq, draft) for seq, draft in zip(seqs, drafts, strict=True)]
        plans = self.table.commit_batch(seqs, drafts, verdicts)
        for seq, text, verdict, plan in zip(seqs, texts, verdicts, plans, strict=True):
            self.committed(seq, text[verdict.path[-1] if verdict.num_accepted else 0], plan)

    def committed(self, seq: int, text: tuple[Entry, ...], plan: mv.kv.CommitPlan) -> None:
        for source, to in plan.moves:
            self.pool[to] = self.pool[source]
        assert plan.length == len(text)
        before = self.models[seq]
        self.models[seq] = Model(before.keys, text, len(text), len(before.text))
        gone = (self.table.block_table([seq])[0] < 0).sum()
        assert gone == self.first_seen(len(before.text)) // self.table.block_size

    @rule(seq=SEQS, share=st.floats(0, 1))
    def rollback(self, seq: int, share: float) -> None:
        if seq not in self.models:
            self.refused(lambda: self.table.rollback(seq, 0))
            return
        model = self.models[seq]
        most = len(model.text)
        self.refused(lambda: self.table.rollback(seq, most + 1), mv.errors.ParamsError)
        length = round(share * most)
        free = self.table.num_free
        gone = (self.table.block_table([seq])[0] < 0).argmin() if most else 0
        if length and gone > self.first_seen(length) // self.table.block_size:
            assert length < model.base
            self.refused(lambda: self.table.rollback(seq, length), mv.errors.ParamsError)
            return
        freed = self.table.rollback(seq, length)
        assert self.table.num_free == free + len(freed)
        self.models[seq] = Model(
            model.keys, model.text[:length], min(model.written, length), min(model.base, length)
        )

    @rule(seq=SEQS)
    def release(self, seq: int) -> None:
        if seq not in self.models:
            self.refused(lambda: self.table.release(seq))
            return
        free = self.table.num_free
        freed = self.table.release(seq)
        assert self.table.num_free == free + len(freed)
        del self.models[seq]

    @invariant()
    def contents_are_right(self) -> None:
        if not hasattr(self, "table"):
            return
        self.table.check_integrity()
        size = self.table.block_size
        held = set()
        for seq, model in self.models.items():
            blocks = self.table.block_table([seq])[0].tolist()
            held.update(block for block in blocks if block >= 0)
            for entry in range(self.first_seen(model.base), model.written):
                assert blocks[entry // size] >= 0
                slot = blocks[entry // size] * size + entry % size
                assert self.pool[slot] == model.content(entry)
            if model.slots:
                assert self.table.slot_mapping([seq])[0].tolist() == model.slots
        assert self.table.num_free == self.num_blocks - len(held)

    def teardown(self) -> None:
        if hasattr(self, "table"):
            for seq in self.models:
                self.table.release(seq)
            assert self.table.num_free == self.num_blocks
            self.table.check_integrity()


TestBlockTable = Machine.TestCase
