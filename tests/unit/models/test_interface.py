"""What is said to who writes a target of his own: which method is wrong, and what was wanted."""

from __future__ import annotations

import pytest
import torch

import mtp_verify as mv
from mtp_verify.drafters import NGram
from mtp_verify.testing import BatchTableTarget, TableCache, TableTarget
from tests.models import TreeDrafter

GREEDY = mv.SamplingParams(temperature=0)


class Cache(mv.TargetCache):
    """The least that a cache can be."""

    def __init__(self):
        self.tokens = []

    @property
    def length(self):
        return len(self.tokens)

    def commit(self, plan):
        for source, target in plan.moves.tolist():
            self.tokens[target] = self.tokens[source]
        self.crop(plan.length)

    def crop(self, length):
        del self.tokens[length:]


class Least(mv.Target):
    """The least that a target can be: the next token is the last one plus 1, mostly."""

    vocab_size = 4

    def new_cache(self, past=None):
        return Cache()

    def forward(self, tokens, positions, tree_mask, cache, hidden_layers=(), *, num_logits):
        cache.tokens += tokens[0].tolist()
        following = (torch.tensor(cache.tokens[-num_logits:]) + 1) % 4
        return 3 * torch.nn.functional.one_hot(following, 4).float(), None


def generate(target, drafter=None):
    return mv.Decoder(target, drafter, GREEDY).generate([0, 1, 0], max_new_tokens=5)


def test_the_least_target_generates_and_has_the_defaults():
    target = Least()
    assert generate(target, NGram()).tokens == [[1, 2, 3, 0, 1]]
    assert (target.max_length, target.eos_ids, target.device.type) == (None, (), "cpu")
    assert (Cache().capacity, Cache().is_recurrent, Cache().finish(2)) == (None, False, None)


def test_a_target_attends_along_no_tree_unless_it_says_so():
    with pytest.raises(mv.errors.UnsupportedModelError, match="does not say that it attends"):
        mv.Decoder(Least(), TreeDrafter([-1, 0, 0]))


@pytest.mark.parametrize("method", ["new_cache", "forward"])
def test_a_class_without_a_method_makes_no_object(method):
    body = {name: getattr(Least, name) for name in ("new_cache", "forward") if name != method}
    kind = type("Mine", (mv.Target,), {"vocab_size": 4, **body})
    with pytest.raises(TypeError, match=method):
        kind()


@pytest.mark.parametrize("method", ["length", "commit", "crop"])
def test_a_cache_without_a_method_makes_no_object(method):
    body = {name: vars(Cache)[name] for name in ("length", "commit", "crop") if name != method}
    with pytest.raises(TypeError, match=method):
        type("Mine", (mv.TargetCache,), body)()


def test_what_is_missing_is_named():
    class NoSize(mv.Target):
        new_cache, forward = Least.new_cache, Least.forward

    class Bare:
        vocab_size, max_length, eos_ids = 4, None, ()
        forward = Least.forward

    with pytest.raises(mv.errors.UnsupportedModelError, match=r"found NoSize, .* no vocab_size\. "):
        mv.Decoder(NoSize())
    with pytest.raises(
        mv.errors.UnsupportedModelError,
        match=r"found Bare, .* it has no new_cache\(\), tree_obstacle, device\. Derive from mv\.T",
    ):
        mv.Decoder(Bare())
    with pytest.raises(
        mv.errors.UnsupportedModelError, match=r"the class Least, wanted .*: Least\(\.\.\."
    ):
        mv.Decoder(Least)


WRONG = {
    "no pair": (lambda rows, cache: rows, r"found .*, wanted a pair: logits"),
    "None": (lambda rows, cache: None, "found None, wanted a pair"),
    "a row too many": (
        lambda rows, cache: (torch.cat([rows, rows[:1]]), None),
        r"found logits \(2, 4\) float32, wanted a tensor \(1, 4\) of float32",
    ),
    "another width": (
        lambda rows, cache: (rows[:, :3], None),
        r"found logits \(1, 3\) float32, wanted a tensor \(1, 4\)",
    ),
    "a batch": (
        lambda rows, cache: (rows[None], None),
        r"found logits \(1, 1, 4\) float32, wanted",
    ),
    "integers": (lambda rows, cache: (rows.long(), None), r"found logits \(1, 4\) int64, wanted"),
    "doubles": (
        lambda rows, cache: (rows.double(), None),
        r"found logits \(1, 4\) float64, wanted",
    ),
    "a list": (lambda rows, cache: (rows.tolist(), None), r"found logits \[\[.*\]\], wanted a te"),
    "no entries": (
        lambda rows, cache: (cache.crop(0), (rows, None))[1],
        "found a cache that has grown by 0 entries, wanted 3: one for each token",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_forward_that_returns_something_else_is_named(name):
    change, message = WRONG[name]

    class Mine(Least):
        def forward(self, tokens, positions, tree_mask, cache, hidden_layers=(), *, num_logits):
            rows, _ = super().forward(
                tokens, positions, tree_mask, cache, hidden_layers, num_logits=num_logits
            )
            return change(rows, cache)

    with pytest.raises(mv.errors.UnsupportedModelError, match=f"Mine.forward: {message}"):
        generate(Mine())


def test_hidden_states_of_another_length_are_named():
    class Reader(NGram):
        hidden_layers = (-1,)

    target = TableTarget(lambda path: [0.0, 1.0], 2, hidden=lambda path, layer: torch.zeros(3))
    generate(target, Reader())

    class Mine(TableTarget):
        def forward(self, *args, **options):
            logits, hidden = super().forward(*args, **options)
            return logits, hidden and tuple(states[1:] for states in hidden)

    mine = Mine(target.rows, 2, hidden=target.hidden)
    with pytest.raises(
        mv.errors.UnsupportedModelError,
        match=r"Mine.forward: found hidden states \[\(6, 3\)\], wanted 1 of shape \(7, d",
    ):
        generate(mine, Reader())


def test_a_cache_that_lacks_something_is_named():
    class Mine(Least):
        def new_cache(self, past=None):
            return []

    with pytest.raises(
        mv.errors.UnsupportedModelError,
        match=r"Mine.new_cache: found \[\] without commit\(\), crop\(\), finish\(\), length, cap",
    ):
        generate(Mine())


def test_a_commit_that_keeps_too_much_is_named():
    class Careless(TableCache):
        def commit(self, plan):
            pass

    class Mine(TableTarget):
        def new_cache(self, past=None):
            return Careless()

    drafter = NGram()
    with pytest.raises(mv.errors.CacheError, match=r"Careless\.commit: found 7 entries, wanted 3"):
        generate(Mine(lambda path: [0.0, 1.0, 2.0], 3), drafter)


def test_rows_of_many_sequences_in_a_wrong_form_are_named():
    class Mine(BatchTableTarget):
        change = staticmethod(lambda found: found)

        def forward_slots(self, *args, **options):
            return self.change(super().forward_slots(*args, **options))

    target = Mine(lambda path: [0.0, 1.0], 2)
    decoder = mv.Decoder(target, NGram(), GREEDY, batching="together")
    assert decoder.generate([[1], [0]], max_new_tokens=2).tokens == [[1, 1]] * 2
    target.change = lambda found: found[0]
    with pytest.raises(
        mv.errors.UnsupportedModelError, match=r"Mine.forward_slots: .* wanted a pair"
    ):
        decoder.generate([[1], [0]], max_new_tokens=2)
    target.change = lambda found: (found[0][:, 0], ())
    with pytest.raises(
        mv.errors.UnsupportedModelError,
        match=r"found logits \(2, 2\) float32, wanted a tensor \(2, 1, 2\)",
    ):
        decoder.generate([[1], [0]], max_new_tokens=2)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vocab_size", "4", "Mine.vocab_size: found '4', wanted a number of tokens, or None"),
        ("vocab_size", 0, "Mine.vocab_size: found 0"),
        ("max_length", 7.5, "Mine.max_length: found 7.5, wanted a number of tokens, or None"),
        ("eos_ids", 3, "Mine.eos_ids: found 3, wanted a tuple of token ids"),
        ("eos_ids", ("a",), r"Mine.eos_ids: found \('a',\), wanted a tuple of token ids"),
        ("tree_obstacle", True, "Mine.tree_obstacle: found True, wanted a reason in words, or"),
    ],
)
def test_attributes_that_cannot_be_are_named(name, value, message):
    kind = type("Mine", (Least,), {name: value})
    with pytest.raises(mv.errors.UnsupportedModelError, match=message):
        mv.Decoder(kind())
