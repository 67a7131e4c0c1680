"""The block table over its Python API: what each call gives back, buffers, batches, threads."""

import doctest
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import mtp_verify as mv

# 0
# +- 1
# |  +- 3
# +- 2
#    +- 4
TREE = mv.TokenTree([-1, 0, 0, 1, 2])


def greedy(draft: mv.Draft, tokens: list[int]) -> mv.Verdict:
    """The verdict of a target that says `tokens`, and then 0."""
    logits = np.zeros((draft.num_nodes, 16), np.float32)
    node = 0
    for token in tokens:
        logits[node, token] = 9
        below = [child for child in draft.tree.children(node) if draft.tokens[child] == token]
        if not below:
            break
        node = below[0]
    return mv.verify(draft, logits, mv.SamplingParams(temperature=0), seed=0, position=0)


def test_a_step_of_one_sequence() -> None:
    table = mv.kv.BlockTable(num_blocks=8, block_size=4)
    assert table.add_sequence(5, 6) == 0
    reservation = table.reserve(5, 5)
    assert reservation.slots.tolist() == [6, 7, 8, 9, 10]
    assert (reservation.slots.dtype, reservation.copies.shape) == (np.int64, (0, 2))
    assert table.num_free == 5
    plan = table.commit(5, TREE, [2])
    assert plan.moves.tolist() == [[8, 7]]
    assert plan.freed.tolist() == [2]
    assert plan.freed.dtype == np.int32
    assert (plan.length, plan.state_select) == (8, 2)
    assert table.lengths([5]).tolist() == [8]
    assert table.release(5).tolist() == [0, 1]
    assert table.num_free == 8
    table.check_integrity()


def test_entries_move_inside_the_blocks_of_their_sequence() -> None:
    table = mv.kv.BlockTable(num_blocks=8, block_size=2)
    table.add_sequence(0, 1)
    table.add_sequence(1, 1)
    batch = table.reserve_batch([0, 1], [5, 5])
    slots = [part.slots for part in batch]
    np.testing.assert_array_equal(np.concatenate(slots), batch.slots)
    assert batch.offsets.tolist() == [0, 5, 10]
    draft = mv.Draft(TREE, [9, 1, 2, 3, 4])
    plans = table.commit_batch([0, 1], [draft, draft], [greedy(draft, [2, 4]), greedy(draft, [7])])
    assert [plan.length for plan in plans] == [4, 2]
    assert plans.lengths.tolist() == [4, 2]
    assert plans.state_select.tolist() == [4, 0]
    ours = slots[0]
    assert plans[0].moves.tolist() == [[ours[2], ours[1]], [ours[4], ours[2]]]
    assert plans[-1].moves.shape == (0, 2)
    np.testing.assert_array_equal(plans.moves, plans[0].moves)
    assert sorted(plans.freed) == sorted([*plans[0].freed, *plans[1].freed])
    with pytest.raises(IndexError):
        plans[2]
    table.check_integrity()


def test_a_fork_copies_the_shared_block_on_its_first_write() -> None:
    table = mv.kv.BlockTable(num_blocks=8, block_size=4)
    table.add_sequence(0, 6)
    table.fork(0, 1)
    assert table.num_free == 6
    first = table.reserve(1, 1)
    assert first.copies.tolist() == [[4, 8], [5, 9]]
    assert first.slots.tolist() == [10]
    second = table.reserve(0, 1)
    assert second.copies.tolist() == []
    assert second.slots.tolist() == [6]
    assert table.block_table([0, 1]).tolist() == [[0, 1], [0, 2]]
    assert table.release(0).tolist() == [1]
    table.check_integrity()


def test_the_last_of_the_writers_of_a_batch_keeps_the_shared_block() -> None:
    table = mv.kv.BlockTable(num_blocks=3, block_size=4)
    table.add_sequence(0, 2)
    table.fork(0, 1)
    table.fork(0, 2)
    batch = table.reserve_batch([0, 1, 2], [1, 1, 1])
    assert table.num_free == 0
    assert batch.copies.tolist() == [[0, 4], [1, 5], [0, 8], [1, 9]]
    assert [len(part.copies) for part in batch] == [2, 2, 0]


def test_a_batch_is_reserved_as_a_whole_or_not_at_all() -> None:
    table = mv.kv.BlockTable(num_blocks=4, block_size=2)
    table.add_sequence(0, 2)
    table.add_sequence(1, 4)
    with pytest.raises(mv.errors.OutOfBlocksError) as caught:
        table.reserve_batch([0, 1], [1, 1])
    assert (caught.value.missing, caught.value.holders) == (1, [1, 0])
    assert table.num_free == 1
    table.reserve(1, 1)
    table.check_integrity()


def test_a_batch_is_committed_as_a_whole_or_not_at_all() -> None:
    table = mv.kv.BlockTable(num_blocks=4, block_size=2)
    draft = mv.Draft(mv.TokenTree([-1, 0]), [9, 1])
    for seq in (0, 1):
        table.add_sequence(seq, 1)
    table.reserve(0, 2)
    verdicts = [greedy(draft, [1]), greedy(draft, [1])]
    with pytest.raises(mv.errors.CacheError, match="sequence 1 has no open reservation"):
        table.commit_batch([0, 1], [draft, draft], verdicts)
    assert table.lengths([0, 1]).tolist() == [1, 1]
    with pytest.raises(mv.errors.CacheError, match="sequence 0 is named twice"):
        table.commit_batch([0, 0], [draft, draft], verdicts)
    with pytest.raises(mv.errors.DraftError, match=r"verdicts: found \(1,\), wanted \(2,\)"):
        table.commit_batch([0, 1], [draft, draft], verdicts[:1])
    assert table.commit_batch([0], [draft], verdicts[:1])[0].length == 3


def test_errors_of_a_batch_name_the_sequence() -> None:
    table = mv.kv.BlockTable(num_blocks=4, block_size=2)
    table.add_sequence(7, 1)
    with pytest.raises(mv.errors.ParamsError, match="sequence 7: counts: found -1") as caught:
        table.reserve_batch([7], [-1])
    assert caught.value.sequence == 7
    table.reserve(7, 3)
    with pytest.raises(mv.errors.CacheError, match=r"sequence 7: path\[1\] = 2") as caught:
        table.commit(7, mv.TokenTree([-1, 0, 0]), [1, 2])
    assert (caught.value.sequence, caught.value.slug) == (7, "not_a_path")


def test_rollback_drops_a_reservation_and_entries() -> None:
    table = mv.kv.BlockTable(num_blocks=4, block_size=2)
    table.add_sequence(0, 3)
    table.reserve(0, 4)
    assert table.rollback(0, 3).tolist() == [2, 3]
    assert table.rollback(0, 2).tolist() == [1]
    with pytest.raises(mv.errors.ParamsError, match="found 3 of 2 entries"):
        table.rollback(0, 3)
    assert table.rollback(0, 0).tolist() == [0]
    assert table.num_free == 4


def prompt(table: mv.kv.BlockTable, seq: int, tokens: list[int], **given: object) -> int:
    """Adds a sequence and lets its first step be committed, which publishes it."""
    cached = table.add_sequence(seq, len(tokens), tokens, **given)
    table.reserve(seq, 1)
    table.commit(seq, mv.TokenTree([-1]), [], [9])
    return cached


def test_equal_beginnings_are_shared() -> None:
    table = mv.kv.BlockTable(num_blocks=16, block_size=2, prefix_cache=True)
    assert prompt(table, 0, [1, 2, 3, 4, 5]) == 0
    assert prompt(table, 1, [1, 2, 3, 4, 7, 8]) == 4
    assert table.add_sequence(2, 4, [3, 4, 1, 2]) == 0
    assert table.add_sequence(3, 6, [1, 2, 3, 4, 5, 9]) == 6, "the root's token 9 is an entry too"
    blocks = table.block_table([0, 1])
    np.testing.assert_array_equal(blocks[0, :2], blocks[1, :2])
    table.check_integrity()


def test_a_prompt_is_not_shared_before_it_is_written() -> None:
    table = mv.kv.BlockTable(num_blocks=16, block_size=2, prefix_cache=True)
    table.add_sequence(0, 4, [1, 2, 3, 4])
    assert table.add_sequence(1, 4, [1, 2, 3, 4]) == 0


def test_released_blocks_stay_known_until_they_are_needed_the_longest_unused_first() -> None:
    table = mv.kv.BlockTable(num_blocks=4, block_size=2, prefix_cache=True)
    for seq, tokens in enumerate([[1, 1, 1], [2, 2, 2]]):
        prompt(table, seq, tokens)
    table.release(0)
    table.release(1)
    assert table.num_free == 4
    assert table.add_sequence(2, 2, [1, 1]) == 2
    table.release(2)
    # The two ends go first, then the beginning of 1, which has been unused for longer.
    table.add_sequence(3, 6)
    assert table.add_sequence(4, 2, [1, 1]) == 2
    assert table.num_free == 0
    table.check_integrity()


def test_what_a_rollback_lets_be_overwritten_is_no_longer_known() -> None:
    table = mv.kv.BlockTable(num_blocks=8, block_size=2, prefix_cache=True)
    prompt(table, 0, [1, 2, 3])
    table.rollback(0, 1)
    assert table.add_sequence(1, 2, [1, 2]) == 2
    table.release(1)
    assert table.reserve(0, 1).copies.tolist() == []
    assert table.add_sequence(1, 2, [1, 2]) == 0
    table.check_integrity()


def test_sequences_without_tokens_take_no_part_in_the_cache() -> None:
    table = mv.kv.BlockTable(num_blocks=8, block_size=1, prefix_cache=True)
    table.add_sequence(0, 2)
    table.reserve(0, 1)
    table.commit(0, mv.TokenTree([-1]), [], [3])
    assert table.add_sequence(1, 1, [3]) == 0


TEXT = [1, 2, 3, 4, 5, 6]


def test_only_sequences_with_the_same_keys_share() -> None:
    table = mv.kv.BlockTable(num_blocks=32, block_size=2, prefix_cache=True)
    keys = ({}, {"salt": "x"}, {"adapter": "x"}, {"salt": "y"}, {"salt": "x", "adapter": "x"})
    for seq, own in enumerate(keys):
        assert prompt(table, seq, TEXT, keys=own) == 0
    for own in keys:
        assert table.num_cached(TEXT, keys=own) == 6
    assert table.num_cached(TEXT, keys={"adapter": "x", "salt": "x"}) == 6, "in any order"
    assert table.num_cached(TEXT, keys={"salt": "z"}) == 0
    table.check_integrity()


def test_an_item_counts_from_where_it_starts() -> None:
    table = mv.kv.BlockTable(num_blocks=32, block_size=2, prefix_cache=True)
    prompt(table, 0, TEXT, items=[(2, 5, "cat")])
    assert table.num_cached(TEXT, items=[(2, 5, "cat")]) == 6
    assert table.num_cached(TEXT) == 2, "the first block comes before it"
    assert table.num_cached(TEXT, items=[(2, 5, "dog")]) == 2
    assert table.num_cached(TEXT, items=[(3, 5, "cat")]) == 2
    assert table.num_cached(TEXT, items=[(2, 6, "cat")]) == 4, "no block has ended the item yet"
    assert table.num_cached(TEXT, items=[(2, 4, "cat"), (4, 5, "cat")]) == 4
    assert table.num_cached(TEXT, keys={"salt": "s"}, items=[(2, 5, "cat")]) == 0


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_shared_is_what_agrees_and_all_of_it(block_size: int, window: int | None) -> None:
    """Where no block is ever lost, against entries that are compared one by one."""
    rng, seen, hits = random.Random(block_size), [], set()
    table = mv.kv.BlockTable(4096, block_size, prefix_cache=True, window=window)
    for seq in range(250):
        tokens = [rng.randint(0, 1) if rng.random() < 0.1 else 0 for _ in range(12)]
        keys = {"salt": rng.choice("ab")} if rng.random() < 0.3 else {}
        items, end = [], 0
        while rng.random() < 0.6 and (start := end + rng.randint(0, 5)) < 12:
            end = min(12, start + rng.randint(1, 4))
            items.append((start, end, rng.choice("ab")))
        behind = {n: (key, n - a) for a, b, key in items for n in range(a, b)}
        text = [(keys, token, behind.get(n)) for n, token in enumerate(tokens)]
        common = (
            next((n for n in range(12) if text[n] != other[n]), 12) // block_size * block_size
            for other in seen
        )
        wanted = max(common, default=0)
        assert prompt(table, seq, tokens, keys=keys, items=items) == wanted
        seen.append(text)
        hits.add(wanted)
    assert len(hits) > 3
    table.check_integrity()


def test_keys_go_with_forks_and_items_with_their_entries() -> None:
    table = mv.kv.BlockTable(num_blocks=32, block_size=2, prefix_cache=True)
    given = {"keys": {"salt": "s"}, "items": [(1, 5, "cat")]}
    prompt(table, 0, [1, 2, 3, 4, 5], **given)
    table.fork(0, 1)
    # Three of the item's entries are left: a text that goes on is not what it was.
    table.rollback(1, 4)
    table.reserve(1, 2)
    table.commit(1, mv.TokenTree([-1, 0]), [1], [5, 9])
    assert table.num_cached([1, 2, 3, 4, 5, 9], **given) == 6, "that of sequence 0"
    assert table.num_cached([1, 2, 3, 4, 5, 9], keys={"salt": "s"}, items=[(1, 4, "cat")]) == 6
    # Without entries only the keys of the whole are left.
    table.rollback(1, 0)
    table.reserve(1, 2)
    table.commit(1, mv.TokenTree([-1, 0]), [1], [7, 8])
    assert table.num_cached([7, 8], keys={"salt": "s"}) == 2
    assert table.num_cached([7, 8]) == 0
    table.check_integrity()


def test_no_more_is_taken_from_others_than_allowed() -> None:
    table = mv.kv.BlockTable(num_blocks=32, block_size=2, prefix_cache=True)
    prompt(table, 0, TEXT)
    for most, wanted in ((0, 0), (1, 0), (5, 4), (2**62, 6)):
        assert table.num_cached(TEXT, max_cached=most) == wanted
        assert table.add_sequence(1, 6, TEXT, max_cached=most) == wanted
        table.release(1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keys": ["a"]}, "keys: found list, wanted a dict of texts"),
        ({"keys": {"a": 1}}, "keys: found int, wanted a str"),
        ({"keys": {"a": "\ud800"}}, "keys: found str, wanted a str of valid Unicode"),
        ({"items": [(0, 1)]}, r"items\[0\]: found a tuple, wanted \(start, stop, key\)"),
        ({"items": [(0, 1, "a"), 7]}, r"items\[1\]: found a int"),
        ({"items": [(0, -1, "a")]}, "items: found -1"),
        ({"items": [(1, 1, "a")]}, r"items: found \(1, 1\) at index 0, wanted start < stop"),
        ({"items": [(0, 2, "a"), (1, 3, "b")]}, r"items: found \(1, 3\) at index 1"),
        ({"items": [(0, 4, "a")]}, r"items: found \(0, 4\) of 3 entries"),
        ({"items": [(0, 1, "a" * 2**25)]}, "bytes of keys and items: 33554432 overflows"),
        ({"max_cached": -1}, "max_cached: found -1"),
    ],
)
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_keys_that_cannot_be_are_refused(given: dict, message: str, prefix_cache: bool) -> None:
    table = mv.kv.BlockTable(num_blocks=4, block_size=2, prefix_cache=prefix_cache)
    for call in (
        lambda: table.add_sequence(1, 3, [1, 2, 3], **given),
        lambda: table.num_cached([1, 2, 3], **given),
    ):
        with pytest.raises((mv.errors.ParamsError, TypeError), match=message):
            call()
    assert table.num_free == 4


def test_a_reset_forgets_all_prefixes_and_takes_nothing_from_anyone() -> None:
    table = mv.kv.BlockTable(num_blocks=8, block_size=2, prefix_cache=True)
    prompt(table, 0, [1, 2, 3])
    prompt(table, 1, [1, 2, 5])
    prompt(table, 2, [6, 7])
    table.release(2)
    before = table.block_table([0, 1]).tolist()
    assert before[0][0] == before[1][0]
    assert table.num_free == 5
    table.reserve(0, 1)
    assert table.reset_prefix_cache() == 4, "two beginnings, two ends and one that nobody holds"
    assert table.block_table([0, 1])[:, :2].tolist() == before
    assert table.num_free == 4
    assert table.reset_prefix_cache() == 0
    # What began before the reset is shared by those that hold it, and by nobody else.
    table.commit(0, mv.TokenTree([-1]), [], [4])
    table.fork(0, 3)
    for seq in (0, 3):
        table.reserve(seq, 1)
        table.commit(seq, mv.TokenTree([-1]), [], [8])
    assert table.num_cached([1, 2, 3, 9, 4, 8]) == 0
    assert prompt(table, 4, [1, 2, 3]) == 0
    assert table.num_cached([1, 2, 3]) == 2
    table.check_integrity()


def test_a_reset_of_a_table_without_a_prefix_cache_is_legal() -> None:
    assert mv.kv.BlockTable(num_blocks=8, block_size=2).reset_prefix_cache() == 0


def grow(table: mv.kv.BlockTable, seq: int, tokens: list[int]) -> mv.kv.CommitPlan:
    """Commits a chain."""
    table.reserve(seq, len(tokens))
    chain = mv.TokenTree(range(-1, len(tokens) - 1))
    return table.commit(seq, chain, range(1, len(tokens)), tokens)


def test_a_window_gives_back_what_the_root_saw_nothing_of() -> None:
    table = mv.kv.BlockTable(num_blocks=8, block_size=2, window=3)
    assert (table.window, mv.kv.BlockTable(1, 1).window) == (3, None)
    table.add_sequence(0, 6)
    assert table.num_free == 5, "the prompt's forward needs all of it"
    table.reserve(0, 5)
    assert table.num_free == 2, "nothing goes while a tree is open"
    # The root, entry 6, saw entries 4 and 5 beside itself.
    plan = table.commit(0, TREE, [2, 4])
    assert plan.freed.tolist() == [5, 0, 1]
    assert table.block_table([0]).tolist() == [[-1, -1, 2, 3, 4]]
    assert plan.moves.tolist() == [[8, 7], [10, 8]]
    # The step can be taken back, and no more.
    with pytest.raises(mv.errors.ParamsError, match="found 5 of 9 entries, wanted 0, or a length"):
        table.rollback(0, 5)
    assert table.rollback(0, 6).tolist() == [3, 4]
    assert table.rollback(0, 0).tolist() == [2]
    assert table.num_free == 8
    table.check_integrity()


def test_a_window_smaller_than_a_block_keeps_the_block_that_is_written() -> None:
    table = mv.kv.BlockTable(num_blocks=3, block_size=4, window=1)
    table.add_sequence(0, 3)
    # Entry 4 is the first that sees nothing of block 0, itself in block 1.
    assert [grow(table, 0, [1]).freed.tolist() for _ in range(6)] == [[], [0], [], [], [], [1]]
    assert table.block_table([0]).tolist() == [[-1, -1, 0]]
    # A pool of three blocks goes on for ever.
    for _ in range(100):
        grow(table, 0, [1])
    assert table.num_free >= 1


def test_a_full_pool_names_who_holds_blocks_that_are_still_seen() -> None:
    table = mv.kv.BlockTable(num_blocks=6, block_size=1, window=2)
    table.add_sequence(0, 4)
    grow(table, 0, [1])
    table.add_sequence(1, 3)
    # Sequence 0 holds two of its five blocks.
    with pytest.raises(mv.errors.OutOfBlocksError) as caught:
        table.reserve(1, 2)
    assert (caught.value.missing, caught.value.holders) == (1, [1, 0])
    assert table.num_free == 1


def test_a_prefix_in_a_window_needs_its_last_blocks_only() -> None:
    table = mv.kv.BlockTable(num_blocks=5, block_size=2, prefix_cache=True, window=4)
    text = [1, 2, 3, 4, 5, 6, 7, 8]
    prompt(table, 0, text)
    assert table.num_cached(text) == 8
    table.release(0)
    # Three of five blocks: the fifth was blank, and the two first were left first.
    table.add_sequence(1, 6)
    table.release(1)
    assert table.num_cached(text) == 8
    assert table.num_cached([*text[:6], 9, 9]) == 0, "nobody has the window of its sixth entry"
    assert table.add_sequence(2, 9, [*text, 9]) == 8
    assert (table.block_table([2])[0] < 0).tolist() == [True, True, False, False, False]
    table.check_integrity()
    # Other tokens before the window are other entries in it.
    assert table.num_cached([0, *text[1:]]) == 0


def test_what_leads_to_no_block_any_more_is_forgotten() -> None:
    table = mv.kv.BlockTable(num_blocks=4, block_size=1, prefix_cache=True, window=2)
    sizes = set()
    for seq in range(50):
        table.add_sequence(seq, 1, [seq])
        for token in range(6):
            grow(table, seq, [token])
        table.release(seq)
        table.check_integrity()
        sizes.add(len(table.__reduce__()[2]))
    assert len(sizes) <= 3


def buffers(kind: str, shape: tuple[int, ...], dtype: str) -> object:
    if kind == "numpy":
        return np.full(shape, 77, dtype)
    torch = pytest.importorskip("torch")
    return torch.full(shape, 77, dtype=getattr(torch, dtype))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_results_are_written_into_buffers_of_the_caller(kind: str) -> None:
    table = mv.kv.BlockTable(num_blocks=8, block_size=2)
    table.add_sequence(4, 3)
    table.add_sequence(-4, 1)
    table.reserve_batch([4, -4], [2, 1])
    blocks = buffers(kind, (2, 4), "int32")
    assert table.block_table([4, -4], out=blocks) is blocks
    assert blocks.tolist() == [[0, 1, 3, -1], [2, -1, -1, -1]]
    slots = buffers(kind, (5,), "int64")
    given, offsets = table.slot_mapping([4, -4], out=slots)
    assert given is slots
    assert slots.tolist() == [3, 6, 5, -1, -1]
    assert offsets.tolist() == [0, 2, 3]
    lengths = buffers(kind, (2,), "int64")
    assert table.lengths([-4, 4], out=lengths) is lengths
    assert lengths.tolist() == [1, 3]


def test_a_part_of_a_larger_buffer_is_written_and_nothing_beside_it() -> None:
    table = mv.kv.BlockTable(num_blocks=8, block_size=2)
    table.add_sequence(0, 3)
    whole = np.full((3, 5), 77, np.int32)
    table.block_table([0], out=whole[1:2, 1:4])
    assert whole[1].tolist() == [77, 0, 1, -1, 77]
    assert (whole[[0, 2]] == 77).all()


def read_only(shape: tuple[int, ...]) -> np.ndarray:
    array = np.zeros(shape, np.int32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "part"),
    [
        (np.zeros((1, 1), np.int32), "wanted (1, at least 2)"),
        (np.zeros((2, 2), np.int32), "wanted (1, at least 2)"),
        (np.zeros((1, 2), np.int64), "int64 with 2 dimensions"),
        (np.zeros(2, np.int32), "int32 with 1 dimensions"),
        (read_only((1, 2)), "writable"),
        ([0, 0], "a list is no array"),
    ],
    ids=["narrow", "high", "dtype", "flat", "read_only", "list"],
)
def test_buffers_that_do_not_fit_are_refused(out: object, part: str) -> None:
    table = mv.kv.BlockTable(num_blocks=8, block_size=2)
    table.add_sequence(0, 3)
    before = np.array(out)
    with pytest.raises(mv.errors.DraftError) as caught:
        table.block_table([0], out=out)
    assert part in str(caught.value)
    np.testing.assert_array_equal(out, before)
    with pytest.raises(mv.errors.DraftError, match="out"):
        table.lengths([0], out=np.zeros(2, np.int64))


def test_an_empty_batch_is_legal() -> None:
    table = mv.kv.BlockTable(num_blocks=1, block_size=1)
    assert table.block_table([]).shape == (0, 0)
    assert len(table.reserve_batch([], [])) == 0
    assert len(table.commit_batch([], [], [])) == 0
    slots, offsets = table.slot_mapping([])
    assert (slots.tolist(), offsets.tolist()) == ([], [0])


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda table: table.add_sequence(1, 2**63), mv.errors.ParamsError),
        (lambda table: table.add_sequence(2**63, 1), mv.errors.ParamsError),
        (lambda table: table.add_sequence(1, -1), mv.errors.ParamsError),
        (lambda table: table.add_sequence(1, 2**63 - 1), mv.errors.OutOfBlocksError),
        (lambda table: table.add_sequence(1, 1, [-1]), mv.errors.ParamsError),
        (lambda table: table.reserve(0, 2**63 - 1), mv.errors.ParamsError),
        (lambda table: table.reserve(0, 2**63 - 2), mv.errors.OutOfBlocksError),
        (lambda table: table.reserve(0, 0), mv.errors.ParamsError),
        (lambda table: table.rollback(0, -1), mv.errors.ParamsError),
        (lambda table: mv.kv.BlockTable(2**31, 1), mv.errors.ParamsError),
        (lambda table: mv.kv.BlockTable(2**31 - 1, 2**33), mv.errors.ParamsError),
        (lambda table: mv.kv.BlockTable(4, 0), mv.errors.ParamsError),
        (lambda table: mv.kv.BlockTable(4, 1, False, 0), mv.errors.ParamsError),
        (lambda table: mv.kv.BlockTable(4, 1, window=-1), mv.errors.ParamsError),
    ],
)
def test_numbers_out_of_range_are_refused(call: object, kind: type[Exception]) -> None:
    table = mv.kv.BlockTable(num_blocks=4, block_size=2)
    table.add_sequence(0, 1)
    with pytest.raises(kind):
        call(table)
    assert table.num_free == 3
    table.check_integrity()


def test_a_large_pool_takes_no_memory_before_it_is_used() -> None:
    table = mv.kv.BlockTable(num_blocks=2**31 - 1, block_size=16)
    table.add_sequence(0, 100)
    assert table.num_free == 2**31 - 1 - 7


def test_threads_take_turns() -> None:
    table = mv.kv.BlockTable(num_blocks=64, block_size=2)

    def work(seq: int) -> None:
        for _ in range(200):
            table.add_sequence(seq, 3)
            table.reserve(seq, 5)
            table.commit(seq, TREE, [2, 4])
            assert table.lengths([seq]).tolist() == [6]
            table.release(seq)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    table.check_integrity()
    assert table.num_free == 64


def test_the_example_of_the_class_runs() -> None:
    example = doctest.DocTestParser().get_doctest(
        mv.kv.BlockTable.__doc__, vars(mv) | vars(mv.kv), "BlockTable", None, None
    )
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
