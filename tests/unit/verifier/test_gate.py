"""What reaches the core from outside: numbers of any size, lists that lie, rows without tokens."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify import _core, drafters
from mtp_verify.verifier import growers
from mtp_verify.verifier.growers import Chain, Coupled, Fixed, Heap, Stochastic, TreeShape, Union

HUGE = 2**70
TREE = mv.TokenTree([-1, 0, 0])
UNIFORM = np.full((1, 4), 0.25, np.float32)
ONE = np.zeros((1, 4), np.float32)
EMPTY = mv.Draft.chain([])
NOISE = {"seed": 1, "position": 0}
HALVES = np.array([0.5, 0.5])


class Claims:
    """A sequence that says it has any number of items."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return 0


def table(num_blocks: int = 4, block_size: int = 2, length: int = 1) -> mv.kv.BlockTable:
    blocks = mv.kv.BlockTable(num_blocks, block_size)
    blocks.add_sequence(0, length)
    return blocks


# Each once ended the process, hung, raised pyo3's PanicException, or named nothing.
NAMED = {
    "parents": lambda: mv.TokenTree(range(2**62)),
    "parents: 1099511627776 overflows": lambda: mv.TokenTree(range(2**40)),
    "parents: 4611686018427387904 overflows": lambda: mv.TokenTree(Claims(2**62)),
    "node": lambda: TREE.children(HUGE),
    "node: found -": lambda: TREE.path(-HUGE),
    "tokens": lambda: mv.Draft(TREE, range(2**62)),
    "root": lambda: mv.Draft.chain([1], root=HUGE),
    "sampled": lambda: mv.Draft(TREE, [-1, 0, 1], law="mixed", sampled=Claims(2**62)),
    "path": lambda: mv.kv.commit_plan(TREE, range(2**62), 0),
    "start": lambda: mv.kv.commit_plan(TREE, [1], HUGE),
    "seed": lambda: mv.derive_seed(HUGE, 0),
    "seed: found -1": lambda: mv.derive_seed(-1, 0),
    "row": lambda: mv.derive_seed(0, HUGE),
    "n": lambda: mv.verifier.alpha_star(HALVES, HALVES, HUGE, "iid"),
    "top_k": lambda: mv.SamplingParams(top_k=HUGE),
    "no_repeat_ngram_size": lambda: mv.SamplingParams(no_repeat_ngram_size=HUGE),
    "min_new_tokens": lambda: mv.SamplingParams(min_new_tokens=HUGE),
    "logit_bias": lambda: mv.SamplingParams(logit_bias={HUGE: 1.0}),
    "banned": lambda: mv.SamplingParams(banned=[HUGE]),
    "banned: found 1099511627776": lambda: mv.SamplingParams(banned=range(2**40)),
    "stop_ids: found ": lambda: mv.SamplingParams(stop_ids=range(2**70)),
    "temperature": lambda: mv.SamplingParams(temperature=10**400),
    "top_logprobs": lambda: mv.verify(EMPTY, ONE, top_logprobs=HUGE, **NOISE),
    "prompt_len": lambda: mv.verify(EMPTY, ONE, prompt_len=HUGE, **NOISE),
    "history": lambda: mv.verify(EMPTY, ONE, history=[HUGE], **NOISE),
    "position": lambda: mv.verify(EMPTY, ONE, seed=1, position=10**5000),
    "sequence 0: top_logprobs": lambda: mv.verify_batch(
        [EMPTY], ONE, seeds=[0], positions=[0], top_logprobs=[HUGE]
    ),
    "lengths": lambda: mv.DraftBatch.chains([[1]], [HUGE]),
    "num_tokens": lambda: Chain(HUGE, **NOISE),
    "num_tokens: 4611686018427387904 overflows": lambda: Chain(2**62, **NOISE),
    "eos_ids": lambda: Chain(2, eos_ids=[HUGE], **NOISE),
    "vocab": lambda: Chain(2, vocab=[HUGE], **NOISE),
    "samples": lambda: Fixed(TreeShape.by_depth(2), "mixed", samples=HUGE, **NOISE),
    "max_nodes": lambda: Heap(HUGE),
    "max_depth": lambda: Heap(4, max_depth=HUGE),
    "width": lambda: Heap(4, width=HUGE),
    "times": lambda: Heap(4, times=Claims(2**62)),
    "lookahead": lambda: Stochastic(4, lookahead=HUGE, **NOISE),
    "counts": lambda: Union(mv.Draft.chain([1]), [HUGE], **NOISE),
    "counts: 4611686018427387904 overflows": lambda: Union(EMPTY, range(2**62), **NOISE),
    "length": lambda: TreeShape.stem(HUGE),
    "length of a stem": lambda: TreeShape.stem(2**62),
    "count": lambda: TreeShape.paths(HUGE, 0),
    "nodes of a shape": lambda: TreeShape.by_depth(2**62),
    "(max_depth + 1)": lambda: TreeShape.optimal([0.5], max_nodes=0, max_depth=2**40),
    "(max_depth + 1) ": lambda: TreeShape.optimal([0.5], max_nodes=2, max_depth=2**29),
    "max_nodes * max_nodes": lambda: TreeShape.optimal([0.5], max_nodes=2**40, max_depth=1),
    "budget": lambda: growers.allocate([[0.5]], HUGE),
    "scores": lambda: growers.allocate(Claims(2**62), 2),
    "drafts": lambda: growers.merge(Claims(2**62)),
    "num_blocks": lambda: mv.kv.BlockTable(HUGE, 1),
    "sequence 1: blocks of a sequence": lambda: table(2**31 - 1, 16).add_sequence(1, 2**34),
    "n of all sequences": lambda: table(2**31 - 1, 16).reserve(0, 2**35 - 64),
    "n of all sequences ": lambda: table(1, 2**62, 2**60).reserve(0, 2**50),
    "max_history": lambda: _core.NGramIndex(3, 1, HUGE),
    "max_tokens": lambda: _core.SuffixStore(HUGE, 4),
    "tokens: 4611686018427387904": lambda: _core.NGramIndex(3, 1, 64).extend(range(2**62)),
    "num": lambda: _core.NGramIndex(3, 1, 64).propose(HUGE, []),
    "k": lambda: _core.top_tokens(ONE, HUGE),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_number_that_nothing_can_hold_is_refused_by_its_name(name):
    with pytest.raises(mv.MtpVerifyError, match="^" + re.escape(name.strip())) as caught:
        NAMED[name]()
    assert len(str(caught.value)) < 300


def test_copies_of_a_fork_are_counted_before_they_are_listed():
    blocks = mv.kv.BlockTable(2, 2**61)
    blocks.add_sequence(1, 2**60)
    blocks.fork(1, 2)
    with pytest.raises(mv.errors.ParamsError, match="copies of a reservation"):
        blocks.reserve(2, 1)
    assert blocks.lengths([1, 2]).tolist() == [2**60] * 2
    blocks.check_integrity()


def test_a_refused_reservation_leaves_the_table_as_it_was():
    blocks = table(2**31 - 1, 16, 5)
    for n in (2**35 - 64, 2**27, 2**62, 0, -1, HUGE, "many", None):
        with pytest.raises((mv.MtpVerifyError, TypeError)):
            blocks.reserve(0, n)
        with pytest.raises((mv.MtpVerifyError, TypeError)):
            blocks.reserve_batch([0], [n])
        with pytest.raises(mv.errors.CacheError, match="no open reservation"):
            blocks.slot_mapping([0])
    assert (blocks.num_free, blocks.lengths([0]).tolist()) == (2**31 - 2, [5])
    blocks.check_integrity()
    assert blocks.reserve(0, 12).slots.tolist() == list(range(5, 17))
    blocks.check_integrity()


class TestDraftsBesideTheirRows:
    """A token beyond the columns has no probability there, and nobody else's memory is read."""

    def test_of_one_row(self):
        with pytest.raises(mv.errors.DraftError, match="token 5 has q = 0, and token 0"):
            mv.Draft(TREE, [-1, 0, 5], law="top_plus_one", probs=UNIFORM)

    def test_of_rows_with_padding_behind_them(self):
        wide = np.full((2, 8), 0.25, np.float32)
        wide[:, 5] = 9.0
        with pytest.raises(mv.errors.DraftError, match="token 5 has q = 0"):
            mv.Draft(TREE, [-1, 0, 5], law="top_plus_one", probs=wide[:, :4])

    def test_of_a_batch(self):
        with pytest.raises(mv.errors.DraftError, match="sequence 1: node 2: token 5 has q = 0"):
            mv.DraftBatch(
                [0, 3, 6], [-1, 0, 0] * 2, [-1, 0, 1, -1, 0, 5], "top_plus_one",
                probs=np.full((6, 4), 0.25, np.float32),
            )  # fmt: skip


ZERO = np.zeros((1, 0), np.float32)
ENTRIES = {
    "verify": lambda: mv.verify(EMPTY, ZERO, **NOISE),
    "verify with processors": lambda: mv.verify(
        EMPTY, ZERO, processors=[lambda ids, scores: scores], history=[1], **NOISE
    ),
    "verify with a mask": lambda: mv.verify(
        EMPTY, ZERO, bitmask=np.zeros((1, 0), np.int32), **NOISE
    ),
    "verify_batch": lambda: mv.verify_batch([EMPTY], ZERO, seeds=[0], positions=[0]),
    "verify_batch of a list": lambda: mv.verify_batch([EMPTY], [ZERO], seeds=[0], positions=[0]),
    "verify_batch of a stack": lambda: mv.verify_batch(
        [EMPTY], ZERO[None], seeds=[0], positions=[0]
    ),
    "expected_accepted": lambda: mv.expected_accepted(EMPTY, ZERO),
    "alpha_star": lambda: mv.verifier.alpha_star(ZERO, ZERO, 1, "iid"),
    "Draft of probs": lambda: mv.Draft.chain([], ZERO),
    "Draft of logits": lambda: mv.Draft(mv.TokenTree([-1]), [-1], law="chain", logits=ZERO),
    "draw": lambda: _core.draw(ZERO, mv.SamplingParams(), 0, 0, 0),
    "shaped_row": lambda: _core.shaped_row(ZERO, mv.SamplingParams()),
    "top_tokens": lambda: _core.top_tokens(ZERO, 1),
    **{
        f"{name}.extend": lambda grower=grower: grower.extend(ZERO)
        for name, grower in {
            "Chain": Chain(2, **NOISE),
            "Fixed": Fixed(TreeShape.by_depth(2), **NOISE),
            "Heap": Heap(2),
            "Stochastic": Stochastic(2, **NOISE),
            "Union": Union(mv.Draft.chain([1]), [1], **NOISE),
            "Coupled": Coupled(TreeShape.by_depth(2), **NOISE),
        }.items()
    },
}


@pytest.mark.parametrize("name", ENTRIES)
def test_rows_without_tokens_are_a_wrong_shape(name):
    with pytest.raises(mv.errors.DraftError) as caught:
        ENTRIES[name]()
    assert caught.value.slug in ("shape_mismatch", "bad_tensor")
    assert re.search("at least one token|strides", str(caught.value))


def test_tokens_that_no_id_can_name_are_a_wrong_shape():
    with pytest.raises(
        mv.errors.DraftError, match=re.escape("wanted rows of 1 to 2**32 - 1 tokens")
    ):
        mv.verify(
            EMPTY, np.zeros((0, 2**45), np.float32), mv.SamplingParams(presence_penalty=1),
            history=[1], **NOISE,
        )  # fmt: skip


def test_a_row_that_is_not_there_takes_no_memory_for_its_tokens():
    none = np.zeros((0, 2**32 - 1), np.float32)
    for params in ({"repetition_penalty": 2}, {"frequency_penalty": 1}, {"banned": [1]}):
        shaping = mv.SamplingParams(**params)
        with pytest.raises(mv.errors.DraftError, match="0 rows, wanted 1 rows"):
            mv.verify(EMPTY, none, shaping, history=[1], **NOISE)
        with pytest.raises(mv.errors.DraftError, match="0 rows"):
            mv.verify_batch([EMPTY], none, shaping, histories=[[1]], seeds=[0], positions=[0])
    with pytest.raises(mv.errors.DraftError, match="0 rows, wanted one row"):
        _core.shaped_row(none, mv.SamplingParams())
    with pytest.raises(mv.errors.DraftError, match="0 rows, wanted one row"):
        _core.draw(none, mv.SamplingParams(), 0, 0, 0)


PARAMS = {
    "verify": lambda params: mv.verify(EMPTY, ONE, params, **NOISE),
    "verify_batch": lambda params: mv.verify_batch([EMPTY], ONE, params, seeds=[0], positions=[0]),
    "expected_accepted": lambda params: mv.expected_accepted(EMPTY, ONE, params),
    "Draft": lambda params: mv.Draft(
        mv.TokenTree([-1, 0]), [-1, 0], law="chain", logits=ONE, params=params
    ),
    "DraftBatch": lambda params: mv.DraftBatch(
        [0, 2], [-1, 0], [-1, 0], "chain", logits=np.zeros((2, 4), np.float32), params=params
    ),
    "Chain": lambda params: Chain(2, params=params, **NOISE),
    "Fixed": lambda params: Fixed(TreeShape.by_depth(2), params=params, **NOISE),
    "Heap": lambda params: Heap(2, params=params),
    "Stochastic": lambda params: Stochastic(2, params=params, **NOISE),
    "Union": lambda params: Union(EMPTY, [1], params=params, **NOISE),
    "Coupled": lambda params: Coupled(TreeShape.by_depth(2), params=params, **NOISE),
    "draw": lambda params: _core.draw(ONE, params, 0, 0, 0),
    "shaped_row": lambda params: _core.shaped_row(ONE, params),
}


@pytest.mark.parametrize("params", [{}, {"temperature": 0.5}, 0.7, "greedy", mv.SamplingParams])
@pytest.mark.parametrize("name", PARAMS)
def test_what_is_no_sampling_parameters_is_refused_by_name(name, params):
    with pytest.raises(mv.errors.ParamsError, match=r"params: found .*, wanted a SamplingParams"):
        PARAMS[name](params)


def test_the_wrong_parameters_of_a_batch_are_named_with_their_sequence():
    with pytest.raises(mv.errors.ParamsError, match=r"sequence 1: params: found \{\}") as caught:
        mv.verify_batch(
            [EMPTY] * 2, np.zeros((2, 4), np.float32), [None, {}], seeds=[0, 1], positions=[0, 0]
        )
    assert caught.value.sequence == 1


@pytest.mark.parametrize("seed", [None, "a", 1.5, [1]])
def test_seeds_and_positions_are_integers(seed):
    for noise in ({"seed": seed, "position": 0}, {"seed": 0, "position": seed}):
        name = next(name for name, value in noise.items() if value is seed)
        with pytest.raises(mv.errors.ParamsError, match=f"^{name}: found"):
            mv.verify(EMPTY, ONE, **noise)
        with pytest.raises(mv.errors.ParamsError, match=f"^{name}: found"):
            Chain(1, **noise)


def test_a_bias_named_twice_is_refused_and_not_dropped():
    with pytest.raises(mv.errors.ParamsError, match="logit_bias: found token 1 twice"):
        _core.CoreParams(1.0, 0, 1.0, 0.0, "transformers", logit_bias=[(1, 1.0), (2, 0), (1, 2.0)])
    with pytest.raises(mv.errors.ParamsError, match=r"logit_bias: found .*, wanted a mapping"):
        mv.SamplingParams(logit_bias=[(1, 1.0), (1, 2.0)])


def test_a_function_that_returns_other_rows_is_refused():
    def process(nodes, rows):
        return rows[:, :2].copy()

    core = mv.SamplingParams()._core
    edits = ([1], 0, None, process)
    with pytest.raises(mv.errors.DraftError, match="found 2 values, wanted 4"):
        _core.verify(EMPTY, ONE, core, "auto", seed=0, position=0, edits=edits)


def test_lists_of_the_core_are_lists_of_anything_that_is_one():
    wanted = mv.TokenTree([-1, 0, 1])
    for parents in ((-1, 0, 1), range(-1, 2), np.arange(-1, 2), np.arange(-1, 2, dtype=np.int16)):
        assert mv.TokenTree(parents) == wanted
    for parents in ("abc", {-1: 0}, {-1, 0}, 3, None, [[-1]], [0.5], iter([-1, 0])):
        with pytest.raises(mv.errors.DraftError, match=r"^parents: dtype"):
            mv.TokenTree(parents)


ENDLESS = Claims(3)  # Its items never end.
GIVEN = {
    "tokens": lambda: mv.Draft(TREE, ENDLESS),
    "parents": lambda: mv.TokenTree(ENDLESS),
    "eos_ids": lambda: Chain(2, eos_ids=ENDLESS, **NOISE),
    "banned": lambda: mv.SamplingParams(banned=ENDLESS),
    "processors": lambda: mv.verify(EMPTY, ONE, processors=ENDLESS, **NOISE),
    "drafts": lambda: mv.verify_batch(ENDLESS, ONE, seeds=[1], positions=[0]),
    "acceptance": lambda: TreeShape.optimal(ENDLESS, max_nodes=2, max_depth=2),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_list_that_never_ends_is_read_as_far_as_it_says(name):
    with pytest.raises(mv.MtpVerifyError, match=f"^{name}: found more"):
        GIVEN[name]()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: mv.verify([1], ONE, **NOISE), "draft: found list, wanted Draft"),
        (lambda: mv.expected_accepted(TREE, ONE), "draft: found TokenTree, wanted Draft"),
        (lambda: mv.best_rule("chain"), "draft: found str, wanted Draft"),
        (
            lambda: mv.verify_batch([EMPTY, 1], ONE, seeds=[0], positions=[0]),
            r"drafts\[1\]: found int, wanted Draft",
        ),
        (lambda: Fixed(TREE, "swor", **NOISE), "shape: found TokenTree, wanted TreeShape"),
        (lambda: Coupled([2], **NOISE), "shape: found list, wanted TreeShape"),
        (lambda: Union([1], [1], **NOISE), "hits: found list, wanted Draft"),
        (lambda: growers.share([EMPTY], 2), r"heaps\[0\]: found Draft, wanted Heap"),
        (lambda: mv.SamplingParams(banned=5), "banned: found int, wanted a list"),
        (lambda: growers.merge([1]), "Draft"),
    ],
)
def test_an_object_of_another_class_is_a_type_error_with_its_name(call, text):
    with pytest.raises(TypeError, match=text):
        call()


@pytest.mark.parametrize("value", ["half", None, True, 10**400, 1j])
def test_lossy_settings_are_numbers_by_name(value):
    for name, make in {
        "eps": lambda: mv.lossy.typical(value, 0.1),
        "delta": lambda: mv.lossy.typical(0.3, value),
        "tau": lambda: mv.lossy.threshold(value),
        "k": lambda: mv.lossy.topk(value),
        "w": lambda: mv.lossy.ensemble(value),
    }.items():
        with pytest.raises(mv.errors.ParamsError, match=f"^{name}: found"):
            make()


def test_a_history_without_order_is_refused():
    for history in ({1: 2}, "1", 5, iter([1])):
        with pytest.raises(mv.errors.ParamsError, match=r"^history: found"):
            mv.verify(EMPTY, ONE, history=history, **NOISE)


def test_half_of_a_protocol_is_none():
    half = type("Half", (), {"__dlpack__": lambda self: None})()
    with pytest.raises(mv.errors.DraftError, match="Half has no __dlpack__ and __dlpack_device__"):
        mv.verify(EMPTY, half, **NOISE)


def test_any_number_of_drafts_has_a_bound():
    for n in (2**31, 2**32 - 1, 2**32, 2**63 - 1):
        assert mv.verifier.alpha_star(HALVES, HALVES, n, "iid") == 1


class TestThreads:
    """An object that threads share is waited for; none finds it "already borrowed"."""

    @pytest.mark.parametrize(
        "index", [_core.SuffixIndex(1, 32, 1.0, 0.1, 4, 2**16), _core.NGramIndex(3, 1, 2**16)]
    )
    def test_indexes(self, index):
        def write(part):
            for start in range(0, 20_000, 5000):
                index.extend([(part * 7 + n) % 11 for n in range(start, start + 5000)])

        def read(_):
            while len(index) < 40_000:
                limits = (4, 4) if isinstance(index, _core.SuffixIndex) else (4,)
                index.propose(*limits, [])

        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(write, part) for part in range(2)]
            jobs += [pool.submit(read, part) for part in range(2)]
            for job in jobs:
                job.result()
        assert len(index) == 40_000

    def test_drafters(self):
        drafter = drafters.Suffix(num_tokens=4)
        requests = [
            drafters.Request(id=n, tokens=[1, 2, 3] * 500, prompt_len=1500, seed=n)
            for n in range(4)
        ]
        for request in requests:
            drafter.start(request)

        def work(request):
            return drafter.propose([request], [4])[0].tokens.tolist()

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, requests)) == [[3, 1, 2, 3, 1]] * 4

    def test_growers(self):
        rows = np.random.default_rng(1).normal(size=(1, 50_000)).astype(np.float32)
        grower = Chain(40, **NOISE)

        def work(_):
            for _ in range(10):
                grower._core.extend(rows)
                assert len(grower.tokens) > 1

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        alone = Chain(40, **NOISE).grow(lambda paths: rows)
        assert grower.tokens.tolist() == alone.tokens.tolist()


class Interrupted:
    """A tensor in whose code a user presses Ctrl-C, or a program is told to end."""

    def __init__(self, how: type[BaseException], *, early: bool = False) -> None:
        self.how, self.early = how, early

    def __dlpack_device__(self) -> tuple[int, int]:
        if self.early:
            raise self.how
        return 1, 0

    def __dlpack__(self, **options: object) -> object:
        raise self.how


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_what_is_no_error_is_not_turned_into_one(how: type[BaseException], early: bool) -> None:
    tensor = Interrupted(how, early=early)
    params = mv.SamplingParams()
    calls = [
        lambda: mv.verify(EMPTY, tensor, params, seed=1, position=0),
        lambda: mv.verify_batch([EMPTY], tensor, params, seeds=[1], positions=[0]),
        lambda: mv.Draft.chain([1], tensor),
        lambda: Chain(1, **NOISE).grow(lambda *_: tensor),
        lambda: _core.Entries(tensor, tensor),
        lambda: _core.Attention([0], [1], None, cos=tensor, sin=ONE, out=ONE, heads=1),
        lambda: table().block_table([0], out=tensor),
    ]
    for call in calls:
        with pytest.raises(how):
            call()
