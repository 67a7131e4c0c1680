"""Sequences in the tables of all kinds of layers of one model."""

import random

import pytest

import mtp_verify as mv

TEXT = [1, 2, 3, 4, 5, 6, 7, 8]


def tables(num_blocks: int = 16, window: int = 4) -> tuple[mv.kv.BlockTable, mv.kv.BlockTable]:
    full = mv.kv.BlockTable(16, 2, prefix_cache=True)
    return full, mv.kv.BlockTable(num_blocks, 2, prefix_cache=True, window=window)


def publish(all_tables: tuple[mv.kv.BlockTable, ...], seq: int, tokens: list[int]) -> int:
    cached = mv.kv.add_sequence(all_tables, seq, len(tokens), tokens)
    for table in all_tables:
        table.reserve(seq, 1)
        table.commit(seq, mv.TokenTree([-1]), [], [9])
    return cached


def test_tables_agree_on_what_all_of_them_have() -> None:
    full, near = tables(num_blocks=5)
    publish((full, near), 0, TEXT)
    near.release(0)
    # The sliding layers lose their two first blocks.
    near.add_sequence(1, 6)
    near.release(1)
    assert mv.kv.add_sequence((full, near), 2, 9, [*TEXT, 0]) == 8
    for table in (full, near):
        table.release(2)
    other = [*TEXT[:6], 0, 0]
    assert (full.num_cached(other), near.num_cached(other)) == (6, 0)
    assert mv.kv.add_sequence((full, near), 3, 8, other) == 0
    for table in (full, near):
        table.check_integrity()


def test_a_shorter_beginning_is_agreed_on_where_one_table_has_no_longer_one() -> None:
    full, near = tables()
    publish((full, near), 0, TEXT[:4])
    publish((near,), 1, TEXT)
    wide = mv.kv.BlockTable(16, 4, prefix_cache=True)
    publish((wide,), 2, TEXT)
    assert [table.num_cached(TEXT) for table in (full, near, wide)] == [4, 8, 8]
    assert mv.kv.add_sequence([wide, near, full], 3, 8, TEXT) == 4
    assert [int(table.lengths([3])[0]) for table in (wide, near, full)] == [8, 8, 8]


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_longest_beginning_that_every_table_has(seed: int) -> None:
    rng, found = random.Random(seed), set()
    full = mv.kv.BlockTable(24, 2, prefix_cache=True)
    near = mv.kv.BlockTable(17, rng.choice([1, 2, 3]), prefix_cache=True, window=5)
    wide = mv.kv.BlockTable(12, 2, prefix_cache=True, window=3)
    for _ in range(150):
        tokens = [0] * rng.randint(0, 12) + [rng.randint(0, 1) for _ in range(rng.randint(0, 3))]
        lengths = [
            most
            for most in range(len(tokens) + 1)
            if all(t.num_cached(tokens, max_cached=most) == most for t in (full, near, wide))
        ]
        assert publish((full, near, wide), 0, tokens) == max(lengths)
        found.add(max(lengths))
        for table in (full, near, wide):
            table.release(0)
            table.check_integrity()
    assert len(found) > 2


def test_keys_reach_every_table() -> None:
    both = tables()
    given = {"keys": {"salt": "a"}, "items": [(0, 2, "cat")]}
    mv.kv.add_sequence(both, 0, 8, TEXT, **given)
    for table in both:
        table.reserve(0, 1)
        table.commit(0, mv.TokenTree([-1]), [], [9])
    assert mv.kv.add_sequence(both, 1, 8, TEXT, **given) == 8
    assert mv.kv.add_sequence(both, 2, 8, TEXT, keys={"salt": "a"}) == 0
    assert mv.kv.add_sequence(both, 3, 8) == 0, "without tokens nothing is shared"


def test_all_tables_take_a_sequence_or_none() -> None:
    full, near = tables(num_blocks=2)
    with pytest.raises(mv.errors.OutOfBlocksError):
        mv.kv.add_sequence([full, near], 0, 8, TEXT)
    assert (full.num_free, near.num_free) == (16, 2)
    near.add_sequence(0, 1)
    with pytest.raises(mv.errors.CacheError, match="sequence 0 is in the table"):
        mv.kv.add_sequence([full, near], 0, 2)
    assert full.num_free == 16
    with pytest.raises(mv.errors.CacheError, match="sequence 1 is in the table"):
        mv.kv.add_sequence([full, full], 1, 2)
    assert full.num_free == 16


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([], mv.errors.ParamsError, "tables: found none"),
        (7, TypeError, "tables: found int"),
        ([None], TypeError, "tables: found NoneType, wanted BlockTable"),
    ],
)
def test_other_tables_are_refused(given: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mv.kv.add_sequence(given, 0, 2)
