"""Rows that penalties, biases and bans change are read on a device as the core changes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import mtp_verify as mv

torch = pytest.importorskip("torch")

from mtp_verify.verifier import kernels
from mtp_verify.verifier.kernels.device.kernel import OnDevice
from mtp_verify.verifier.kernels.device.shadow import Changes, Shadow
from tests.guards import NoHostReads

if TYPE_CHECKING:
    from collections.abc import Sequence

V = 41
RULES = ("target_only", "coupled", "topdown", "lifted", "auto")
TREE = [-1, 0, 0, 1, 1, 3]
EACH = {
    "repetition": {"repetition_penalty": 1.7},
    "repetition_below_1": {"repetition_penalty": 0.6},
    "reciprocal": {"repetition_penalty": 1.7, "preset": "vllm"},
    "presence": {"presence_penalty": 0.9},
    "frequency": {"frequency_penalty": -1.3},
    "ngram": {"no_repeat_ngram_size": 2},
    "bias": {"logit_bias": {3: 4.0, 7: -2.5, 9: -np.inf}},
    "banned": {"banned": [1, 2, 5, 40]},
    "min_new_tokens": {"min_new_tokens": 9, "stop_ids": [0, 4, 6]},
}


def random_params(rng: np.random.Generator, **more: Any) -> mv.SamplingParams:
    """Return parameters with several of the changes, or with none."""
    chosen: dict[str, Any] = {"temperature": float(rng.choice([0.0, 0.7, 1.0]))}
    for own in EACH.values():
        if rng.random() < 0.4:
            chosen |= own
    if rng.random() < 0.3:
        chosen |= {"top_k": 9, "top_p": 0.9}
    return mv.SamplingParams(**(chosen | more))


class Case:
    """Random drafts with histories, for the core and for a device."""

    def __init__(self, rng: np.random.Generator, count: int, dtype: Any = torch.float32) -> None:
        # Few tokens, so that they come again.
        parents = [TREE[: int(rng.integers(1, len(TREE) + 1))] for _ in range(count)]
        self.positions = [int(rng.integers(0, 12)) for _ in parents]
        self.histories = [rng.integers(0, 8, p + 1).tolist() for p in self.positions]
        self.prompt_lens = [int(rng.integers(0, p + 2)) for p in self.positions]
        self.drafts = [
            mv.Draft(mv.TokenTree(tree), [history[-1], *rng.permutation(8)[: len(tree) - 1]])
            for tree, history in zip(parents, self.histories, strict=True)
        ]
        self.seeds = rng.integers(0, 1 << 60, count).tolist()
        rows = sum(map(len, parents))
        self.logits = torch.tensor(4 * rng.standard_normal((rows, V))).to(dtype)
        self.rules = [RULES[rng.integers(len(RULES))] for _ in parents]
        self.params = [random_params(rng) for _ in parents]

    @property
    def call(self) -> dict[str, Any]:
        """The arguments that `plan` and `verify_batch` share."""
        return {
            "rule": self.rules,
            "seeds": self.seeds,
            "positions": self.positions,
            "histories": self.histories,
            "prompt_lens": self.prompt_lens,
        }

    def wanted(self) -> mv.VerdictBatch:
        """Return the core's verdicts."""
        return mv.verify_batch(self.drafts, self.logits, self.params, **self.call)


def verifier(dtype: Any = torch.float32, **options: Any) -> mv.ops.DeviceVerifier:
    return mv.ops.DeviceVerifier(8, 64, V, dtype, device="cpu", **options)


def run(device: mv.ops.DeviceVerifier, case: Case, **more: Any) -> mv.VerdictBatch:
    device.plan(case.drafts, case.params, **case.call, **more)
    device.verify(case.logits)
    return device.host()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_steps_are_those_of_the_core(rng: np.random.Generator, dtype: Any) -> None:
    device = verifier(dtype)
    edited = 0
    for _ in range(60):
        case = Case(rng, int(rng.integers(1, 6)), dtype)
        assert run(device, case) == case.wanted()
        edited += any(own._core.changes_logits for own in case.params)
    assert edited > 40


@pytest.mark.parametrize("name", EACH)
def test_each_parameter_changes_verdicts_as_the_core_does(
    rng: np.random.Generator, name: str
) -> None:
    device, different = verifier(), 0
    for _ in range(40):
        case = Case(rng, 2)
        case.params = [mv.SamplingParams(**EACH[name])] * 2
        found = run(device, case)
        assert found == case.wanted()
        assert found.backends == ["torch"] * 2
        case.params = [mv.SamplingParams()] * 2
        different += found != case.wanted()
    assert different


def test_every_node_has_its_own_path(rng: np.random.Generator) -> None:
    # Each node's token is what its parent's row likes most, unless it was there before.
    draft = mv.Draft.chain([3, 3, 3, 5, 3])
    logits = torch.zeros(6, V)
    for node, token in enumerate([3, 3, 3, 5, 3, 3]):
        logits[node, token] = 9.0
    params = mv.SamplingParams(temperature=0, frequency_penalty=4.0)
    device = verifier()
    device.plan([draft], params, seeds=[1], positions=[0], histories=[[7]])
    device.verify(logits)
    found = device.host()[0]
    assert found == mv.verify(draft, logits, params, seed=1, position=0, history=[7])
    # 9 - 4 and 9 - 8 are above 0, the rest; 9 - 12 is not.
    assert found.tokens.tolist()[:3] == [3, 3, 3]


def test_drafters_rows_and_masks_go_with_edits(rng: np.random.Generator) -> None:
    count, length = 3, 4
    rows = torch.tensor(rng.standard_normal((count * (length + 1), V))).float().softmax(-1)
    drawn = torch.multinomial(rows, 1).view(count, length + 1)
    tokens = torch.cat([torch.full((count, 1), -1), drawn[:, :-1]], 1).flatten()
    offsets, parents = np.arange(count + 1) * (length + 1), np.tile(np.arange(-1, length), count)
    host = mv.DraftBatch(offsets, parents, tokens.numpy(), "chain", probs=rows)
    given = mv.ops.DeviceDrafts(offsets, parents, tokens, "chain", probs=rows)
    logits = torch.tensor(3 * rng.standard_normal((len(rows), V))).float()
    mask = np.full((len(rows), 2), -1, np.int32)
    mask[::2] = 0x0F0F0F0F
    device = verifier()
    params = [mv.SamplingParams(**EACH[name]) for name in ("repetition", "bias", "banned")]
    places = {"seeds": [1, 2, 3], "positions": [2, 2, 2], "histories": [[1, 2, 3], None, None]}
    device.plan(given, params, **places, bitmask=mask)
    device.verify(logits)
    masks = list(mask.reshape(count, length + 1, 2))
    assert device.host() == mv.verify_batch(host, logits, params, **places, bitmasks=masks)


def test_padded_rows_are_edited_where_they_stand(rng: np.random.Generator) -> None:
    case, device = Case(rng, 3), verifier()
    padded = torch.full((3, 7, V), torch.nan)
    start = 0
    for b, draft in enumerate(case.drafts):
        padded[b, : draft.num_nodes] = case.logits[start : start + draft.num_nodes]
        start += draft.num_nodes
    device.plan(case.drafts, case.params, **case.call, height=7)
    device.verify(padded)
    assert device.host() == case.wanted()


def test_a_ban_hides_what_is_no_number() -> None:
    draft, logits = mv.Draft.chain([1]), torch.zeros(2, V)
    logits[:, 5] = torch.nan
    device, places = verifier(), {"seeds": [1], "positions": [0]}
    banned = mv.SamplingParams(banned=[5])
    device.plan([draft], banned, **places)
    device.verify(logits)
    assert device.host() == mv.verify_batch([draft], logits, banned, **places)
    device.plan([draft], mv.SamplingParams(logit_bias={5: -np.inf}), **places)
    device.verify(logits)
    with pytest.raises(mv.errors.NumericsError, match="row 0: found NaN"):
        device.host()


def test_logits_stay_as_they_are(rng: np.random.Generator) -> None:
    case = Case(rng, 4, torch.bfloat16)
    before = case.logits.clone()
    run(verifier(torch.bfloat16), case)
    assert torch.equal(case.logits, before)


def test_memory_is_there_when_needed_and_grows_by_powers_of_two() -> None:
    device, logits = verifier(), torch.zeros(6, V)
    places = {"seeds": [1], "positions": [0]}

    def shadow(nodes: int, banned: Sequence[int]) -> Any:
        draft = mv.Draft.chain([1] * (nodes - 1))
        device.plan([draft], mv.SamplingParams(banned=banned), **places)
        return device.step(logits).edited.shadow

    assert shadow(6, []) is None
    assert device._shadow._values is None
    first = shadow(3, [1])
    assert first.shape == (4 + 1, V)
    assert shadow(4, [2]).data_ptr() == first.data_ptr()
    assert shadow(2, [2]).data_ptr() == first.data_ptr()
    assert shadow(5, [2]).shape == (8 + 1, V)
    assert device._shadow._room == (8, 8)
    assert shadow(3, [*range(9)]).shape == (8 + 1, V)
    assert device._shadow._room == (8, 32)
    assert shadow(6, []) is None


def test_a_fixed_step_serves_more_and_fewer_changes(rng: np.random.Generator) -> None:
    device = verifier(max_passes=8, truncates=True)
    large = Case(rng, 6)
    large.params = [mv.SamplingParams(**EACH["bias"])] * 6
    assert run(device, large) == large.wanted()
    # What a graph would have captured.
    device._shadow.capture()
    memory = device.step(large.logits).edited.shadow.data_ptr()
    for _ in range(20):
        case = Case(rng, 2)
        case.params = [
            mv.SamplingParams(**own) for own in ({"logit_bias": {2: 1.5}}, {"banned": [0]})
        ]
        assert run(device, case) == case.wanted()
        case.params = [mv.SamplingParams()] * 2
        assert run(device, case) == case.wanted()
        assert device.step(case.logits).edited.shadow.data_ptr() == memory
    wider = Case(rng, 6)
    wider.params = [mv.SamplingParams(banned=list(range(40)))] * 6
    with pytest.raises(mv.errors.ParamsError, match="before the graph was captured"):
        run(device, wider)
    # The step before it is as it was.
    device.verify(case.logits)
    assert device.host() == case.wanted()


def test_a_graph_without_changes_takes_none(rng: np.random.Generator) -> None:
    device = verifier(max_passes=8, truncates=True)
    device._shadow.capture()
    case = Case(rng, 1)
    case.params = [mv.SamplingParams(banned=[3])]
    with pytest.raises(mv.errors.ParamsError, match="at most 0 in 0"):
        run(device, case)


def test_writing_waits_for_nothing() -> None:
    rows, cells = np.array([1, 3], np.int32), np.array([2, V + 3], np.int64)
    numbers = np.ones((6, 2), np.float32)
    shadow = Shadow(4, V, torch.device("cpu"), is_fixed=False)
    shadow.send(Changes(rows, cells, np.array([False, True]), numbers))
    logits = torch.arange(4.0 * V).view(4, V).bfloat16()
    with NoHostReads() as guard:
        values, shadow_of = shadow.write(logits, torch.tensor([3, 2, 1, 0], dtype=torch.int32))
    assert guard.names
    assert shadow_of.tolist() == [-1, 0, -1, 1]
    wanted = logits[[2, 0]].float()
    wanted[0, 2] += 1 - 1 - 1
    wanted[1, 3] = -torch.inf
    assert torch.equal(values[:2], wanted)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "history: found None|history: None"),
        ({"histories": [[1, 2]]}, "history: found 2 tokens, wanted position"),
        ({"histories": [[1, 2, 3, 5]]}, "ends with token 5"),
        ({"histories": [[1, 2, 99, 4]]}, "history"),
        ({"histories": [[1, 2, 3, 4]], "prompt_lens": [5]}, "prompt_len: found 5"),
        ({"histories": [[1, 2, 3, 4]] * 2}, "histories: found 2 entries"),
        ({"histories": [[1, 2, 3, 4]], "prompt_lens": [1, 1]}, "prompt_lens: found 2 entries"),
    ],
)
def test_histories_are_checked_as_by_verify_batch(change: dict[str, Any], text: str) -> None:
    draft = mv.Draft(mv.TokenTree([-1, 0]), [4, 1])
    params = mv.SamplingParams(repetition_penalty=2.0)
    call = {"seeds": [1], "positions": [3], **change}
    with pytest.raises(mv.errors.ParamsError, match=text) as caught:
        verifier().plan([draft], params, **call)
    with pytest.raises(mv.errors.ParamsError) as wanted:
        mv.verify_batch([draft], torch.zeros(2, V), params, **call)
    assert str(caught.value) == str(wanted.value)
    assert caught.value.sequence == wanted.value.sequence


def test_tokens_that_the_device_alone_knows_are_refused() -> None:
    tokens = torch.zeros(2, dtype=torch.int64, device="meta")
    drafts = mv.ops.DeviceDrafts([0, 2], [-1, 0], tokens, "deterministic")
    with pytest.raises(mv.errors.ParamsError, match="tokens on the host") as caught:
        verifier().plan(drafts, mv.SamplingParams(banned=[1]), seeds=[1], positions=[0])
    assert caught.value.slug == "not_supported"


@pytest.mark.parametrize("name", EACH)
def test_calls_with_edits_stay_on_the_device(rng: np.random.Generator, name: str) -> None:
    case = Case(rng, 3)
    case.params = [mv.SamplingParams(**EACH[name])] * 3
    with kernels.using(OnDevice("torch")):
        found = case.wanted()
        one = mv.verify(
            case.drafts[0], case.logits[: case.drafts[0].num_nodes], case.params[0],
            rule=case.rules[0], seed=case.seeds[0], position=case.positions[0],
            history=case.histories[0], prompt_len=case.prompt_lens[0],
        )  # fmt: skip
    assert found == case.wanted()
    assert found.backends == ["torch"] * 3
    assert (one, one.backend) == (found[0], "torch")
