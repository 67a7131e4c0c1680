"""`DeviceVerifier`, the kernel that uses it, and the operators, all on the CPU."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import mtp_verify as mv

torch = pytest.importorskip("torch")
ops = mv.ops

from mtp_verify.verifier import kernels
from mtp_verify.verifier.growers import Chain
from mtp_verify.verifier.kernels.device.kernel import OnDevice
from tests.host_reads import HostReads

V = 37
TREE = [-1, 0, 0, 1, 1]


def logits_of(rows, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, V, generator=generator)).to(dtype)


def deterministic(seed=0):
    tokens = np.random.default_rng(seed).permutation(V)[:5].tolist()
    return mv.Draft(mv.TokenTree(TREE), [-1, *tokens[1:]])


def chains(count, length, seed=0):
    """Chains with their rows, for the core and for a device."""
    rows = logits_of(count * (length + 1), seed).softmax(-1)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(rows, 1, generator=generator).view(count, length + 1)
    tokens = torch.cat([torch.full((count, 1), -1), drawn[:, :-1]], 1)
    offsets = np.arange(count + 1) * (length + 1)
    parents = np.tile(np.arange(-1, length), count)
    host = mv.DraftBatch(offsets, parents, tokens.flatten().numpy(), "chain", probs=rows)
    return host, ops.DeviceDrafts(offsets, parents, tokens.flatten(), "chain", probs=rows)


def verifier(requests=4, rows=24, **options):
    return ops.DeviceVerifier(
        requests, rows, V, options.pop("dtype", torch.float32), device="cpu", **options
    )


def run(device, drafts, logits, params=None, **options):
    device.plan(drafts, params, **options)
    device.verify(logits)
    return device.host()


def test_steps_of_any_size_are_those_of_the_core():
    device = verifier()
    for count, length in [(4, 5), (1, 0), (3, 2), (4, 5), (0, 0)]:
        host, drafts = chains(count, length, seed=count)
        logits = logits_of(count * (length + 1), 9)
        places = {"seeds": range(count), "positions": range(5, 5 + count)}
        for rule in ("auto", "token", "target_only", "coupled"):
            found = run(device, drafts, logits, rule=rule, **places)
            wanted = mv.verify_batch(host, logits, rule=rule, **places)
            assert found == wanted
            assert found.backends == ["torch"] * count
            assert wanted.backends == ["host"] * count


def test_moves_and_lengths_are_those_of_a_commit():
    device = verifier()
    draft = deterministic()
    logits = logits_of(5)
    logits[0, draft.tokens[2]] = 99  # The second child is accepted.
    found = run(device, [draft], logits, seeds=[1], positions=[7], starts=[100])
    plan = mv.kv.commit_plan(draft.tree, found[0].path, 100)
    out = device.outcomes
    assert out.moves[0, : len(plan.moves)].tolist() == plan.moves.tolist() != []
    assert (out.length[0], out.state_select[0]) == (plan.length, plan.state_select)


def test_padded_rows_are_read_where_they_stand():
    host, drafts = chains(3, 2)
    logits = logits_of(9)
    padded = torch.full((3, 5, V), torch.nan)
    padded[:, :3] = logits.view(3, 3, V)
    places = {"seeds": [1, 2, 3], "positions": [4, 4, 4]}
    found = run(verifier(), drafts, padded, height=5, **places)
    assert found == mv.verify_batch(host, logits, **places)


CUTS = [{"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.2}]


@pytest.mark.parametrize("cut", CUTS, ids=repr)
def test_rows_of_the_drafter_are_cut_where_those_of_the_target_are_not(cut):
    count, length = 16, 2
    shaping, warm = mv.SamplingParams(**cut), mv.SamplingParams(temperature=0.7)
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(count, length + 1, V, generator=generator)
    rows = 2 * torch.randn(count, length, V, generator=generator)
    seeds, positions = list(range(count)), [5] * count
    drafts = [
        Chain(length, root=0, params=shaping, seed=seed, position=5).grow(
            lambda paths, own=own: own[[len(path) for path in paths]]
        )
        for seed, own in zip(seeds, rows, strict=True)
    ]
    joined = ops.DeviceDrafts(
        np.arange(count + 1) * (length + 1),
        np.tile(np.arange(-1, length), count),
        np.concatenate([draft.tokens for draft in drafts]),
        "chain",
        logits=rows.flatten(0, 1),
        params=shaping,
        rows=np.concatenate([[*(i * length + np.arange(length)), -1] for i in range(count)]),
    )
    device = verifier(requests=count, rows=count * (length + 1))
    places = {"seeds": seeds, "positions": positions}
    device.plan(joined, warm, rule="token", **places)
    device.verify(target.flatten(0, 1))
    assert device.host() == mv.verify_batch(drafts, list(target), warm, rule="token", **places)


def test_masks_leave_tokens_out():
    draft, logits = deterministic(), logits_of(5)
    mask = np.full((5, 2), [0b1011, 0], np.int32)
    for given in (mask, torch.from_numpy(mask)):
        found = run(verifier(), [draft], logits, seeds=[1], positions=[0], bitmask=given)
        wanted = mv.verify(draft, logits, seed=1, position=0, bitmask=mask)
        assert found[0] == wanted
        assert set(found.tokens) <= {0, 1, 3}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"drafts": [deterministic()] * 5}, mv.errors.DraftError, "requests: found 5"),
        ({"drafts": [mv.Draft.chain(range(30))]}, mv.errors.DraftError, "nodes: found 31"),
        ({"drafts": [mv.Draft.chain([40])]}, mv.errors.DraftError, "token 40"),
        ({"params": mv.SamplingParams(repetition_penalty=2.0)}, mv.errors.ParamsError, "history"),
        ({"rule": "nothing"}, mv.errors.RuleError, "nothing"),
        ({"rule": "gbv"}, mv.errors.RuleError, "gbv"),
        ({"seeds": [1, 2]}, mv.errors.ParamsError, "seeds: found 2"),
        ({"positions": [2**32]}, mv.errors.ParamsError, "positions: 4294967296"),
        ({"height": 3}, mv.errors.DraftError, "found 3 rows, wanted 5"),
        ({"bitmask": np.zeros((5, 1), np.int32)}, mv.errors.DraftError, "bitmask"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_sent(change, error, text):
    device, logits = verifier(), logits_of(5)
    places = {"seeds": [1], "positions": [3]}
    before = run(device, [deterministic()], logits, **places)
    call = {"drafts": [deterministic()], **places, **change}
    with pytest.raises(error, match=text):
        device.plan(call.pop("drafts"), call.pop("params", None), **call)
    device.verify(logits)
    assert device.host() == before


def test_sampled_drafts_need_their_rows_on_the_device():
    host, drafts = chains(1, 2)
    device, places = verifier(), {"seeds": [1], "positions": [3]}
    for given in (host, ops.DeviceDrafts(drafts.offsets, drafts.parents, drafts.tokens, "chain")):
        with pytest.raises(mv.errors.DraftError, match="rows on the device"):
            device.plan(given, **places)
    rows = drafts.probs
    for wrong in (rows.double(), rows[:, 1:], rows.T.contiguous().T):
        given = ops.DeviceDrafts(
            drafts.offsets, drafts.parents, drafts.tokens, "chain", probs=wrong
        )
        with pytest.raises(mv.errors.DraftError, match="probs: found"):
            device.plan(given, **places)
    short = ops.DeviceDrafts(
        drafts.offsets, drafts.parents, drafts.tokens, "chain", probs=rows, rows=[0, -1, -1]
    )
    with pytest.raises(mv.errors.DraftError, match="node 2 was sampled") as caught:
        device.plan(short, **places)
    assert (caught.value.node, caught.value.sequence) == (2, 0)


def test_logits_that_do_not_fit_are_refused():
    device = verifier()
    with pytest.raises(mv.errors.DraftError, match="call plan"):
        device.verify(logits_of(5))
    with pytest.raises(mv.errors.DraftError, match="call plan"):
        device.host()
    device.plan([deterministic()], seeds=[1], positions=[3])
    for wrong in (logits_of(4), logits_of(5)[:, 1:], logits_of(5).bfloat16()):
        with pytest.raises(mv.errors.DraftError, match="logits: found"):
            device.verify(wrong)


def test_rows_that_are_no_distribution_are_errors_of_their_request():
    device, logits = verifier(), logits_of(10)
    logits[5] = torch.nan
    device.plan([deterministic()] * 2, seeds=[1, 2], positions=[3, 3])
    device.verify(logits)
    with pytest.raises(mv.errors.NumericsError, match="sequence 1: row 0") as caught:
        device.host()
    assert (caught.value.sequence, caught.value.row) == (1, 0)
    logits[5] = -torch.inf
    device.verify(logits)
    with pytest.raises(mv.errors.NumericsError, match="nothing is left"):
        device.host()


def test_a_fixed_step_refuses_what_it_does_not_run():
    device = verifier(max_passes=1, truncates=False)
    places = {"seeds": [1], "positions": [3]}
    with pytest.raises(mv.errors.ParamsError, match="truncates=False"):
        device.plan([deterministic()], mv.SamplingParams(top_k=3), **places)
    rows = logits_of(3).softmax(-1)
    wide = ops.DeviceDrafts([0, 3], [-1, 0, 0], [-1, 1, 2], "iid", probs=rows)
    with pytest.raises(mv.errors.DraftError, match="passes: found 2"):
        device.plan(wide, **places)


def test_sizes_and_names_are_checked():
    for options in ({"requests": 0}, {"rows": -1}, {"dtype": torch.float64}, {"backend": "cpu"}):
        with pytest.raises(mv.errors.ParamsError):
            verifier(**options)


# The kernel of rows on a device, forced on for the CPU's.


@pytest.fixture
def on_device():
    with kernels.using(OnDevice("torch")):
        yield


def both(call):
    """The results with the device's kernel, and with the host's."""
    with kernels.using(OnDevice("torch")):
        found = call()
    return found, call()


def test_calls_with_rows_on_a_device_stay_there():
    draft, logits = deterministic(), logits_of(5)
    found, wanted = both(lambda: mv.verify(draft, logits, seed=3, position=2))
    assert found == wanted
    assert (found.backend, wanted.backend) == ("torch", "host")
    lists = [logits, logits_of(5, 1)]
    for rows in (lists, torch.stack(lists), torch.cat(lists)):
        found, wanted = both(
            lambda rows=rows: mv.verify_batch([draft] * 2, rows, seeds=[1, 2], positions=[3, 4])
        )
        assert found == wanted
        assert found.backends == ["torch"] * 2


@pytest.mark.parametrize(
    "options",
    [
        {"top_logprobs": 2},
        {"lossy": mv.lossy.typical(0.1, 0.2)},
        {"processors": [lambda ids, scores: scores / 2], "history": [1, 2, 3]},
    ],
    ids=["top_logprobs", "lossy", "processors"],
)
def test_what_a_device_does_not_do_is_done_by_the_host(options):
    draft, logits = deterministic(), logits_of(5)
    call = {"seed": 3, "position": 2, **options}
    found, wanted = both(lambda: mv.verify(draft, logits, **call))
    assert found == wanted
    assert found.backend == "host"


def test_drafts_with_rows_on_the_host_are_verified_there():
    host, _ = chains(2, 3)
    logits = logits_of(8)
    found, wanted = both(lambda: mv.verify_batch(host, logits, seeds=[1, 2], positions=[3, 3]))
    assert found == wanted
    assert found.backends == ["host"] * 2
    found, _ = both(
        lambda: mv.verify_batch(host, logits, rule="coupled", seeds=[1, 2], positions=[3, 3])
    )
    assert found.backends == ["torch"] * 2


def test_masks_of_some_requests_are_joined():
    draft = deterministic()
    logits = torch.cat([logits_of(5), logits_of(5, 1)])
    masks = [None, np.full((5, 2), 0b110, np.int32)]
    found, wanted = both(
        lambda: mv.verify_batch([draft] * 2, logits, seeds=[1, 2], positions=[3, 4], bitmasks=masks)
    )
    assert found == wanted
    assert found.backends == ["torch"] * 2


@pytest.mark.parametrize("rows", [4, 6])
def test_errors_are_those_of_the_host(on_device, rows):
    draft = deterministic()
    with pytest.raises(mv.errors.DraftError, match=f"logits: found {rows} rows") as caught:
        mv.verify(draft, logits_of(rows), seed=1, position=2)
    assert caught.value.sequence is None
    logits = logits_of(5)
    logits[0, 3] = torch.nan
    with pytest.raises(mv.errors.NumericsError, match="row 0") as caught:
        mv.verify(draft, logits, seed=1, position=2)
    assert (caught.value.row, caught.value.sequence) == (0, None)


def test_logits_of_a_type_that_none_takes_are_the_host_s_error(on_device):
    draft, logits = deterministic(), logits_of(5).double()
    with pytest.raises(mv.errors.DraftError, match="float64") as caught:
        mv.verify(draft, logits, seed=1, position=2)
    assert caught.value.slug == "bad_dtype"
    with pytest.raises(mv.errors.DraftError, match="float64"):
        mv.verify_batch([draft], [logits], seeds=[1], positions=[2])


def test_few_verifiers_are_kept():
    kernel = OnDevice("torch")
    with kernels.using(kernel):
        for vocab in range(3, 15):
            mv.verify(mv.Draft.chain([1]), logits_of(2)[:, :vocab], seed=1, position=2)
    assert len(kernel._verifiers) <= 8


# The operators.


@pytest.mark.parametrize("law", ["deterministic", "chain", "swor"])
def test_the_operator_leaves_rows_on_the_device(law):
    parents = torch.tensor([-1, 0, 1] if law == "chain" else [-1, 0, 0])
    rows = logits_of(6, 5).view(2, 3, V).softmax(-1)
    tokens = torch.tensor([[0, 1, 2], [0, 4, 3]])
    options = {
        "law": law,
        "parents": parents,
        "probs": None if law == "deterministic" else rows,
        "lengths": torch.tensor([2, 1]),
        "seeds": torch.tensor([1, 2]),
        "positions": torch.tensor([4, 5]),
    }
    logits = logits_of(6, 2).view(2, 3, V)
    logits[0, 0, 1] = logits[1, 0, 4] = 9.0
    for params in (None, mv.SamplingParams(top_k=4), mv.SamplingParams(temperature=0)):
        found, wanted = both(
            lambda params=params: ops.verify_batch(tokens, logits, params, **options)
        )
        assert found == wanted
        assert [part.dtype for part in found] == [part.dtype for part in wanted]


def test_a_compiled_loop_holds_a_planned_step():
    device = verifier(requests=2, rows=8, max_depth=3)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(hidden, head):
        found = ops.verify_planned(device, hidden @ head)
        return found.tokens + 0, found.num_accepted * 2

    head = torch.eye(V)
    for seed in range(3):
        host, drafts = chains(2, 3, seed)
        logits = logits_of(8, seed + 10)
        places = {"seeds": [seed, seed + 1], "positions": [5, 6]}
        device.plan(drafts, **places)
        tokens, accepted = step(logits, head)
        wanted = mv.verify_batch(host, logits @ head, **places)
        assert device.host() == wanted
        assert (accepted == 2 * torch.from_numpy(wanted.num_accepted)).all()
        assert tokens[tokens >= 0].tolist() == wanted.tokens.tolist()


def test_operators_pass_torchs_own_checks():
    device = verifier(requests=1, rows=5)
    device.plan([deterministic()], seeds=[1], positions=[3])
    torch.library.opcheck(torch.ops.mtp_verify.verify_planned.default, (logits_of(5), device.key))


def test_a_verifier_that_nobody_holds_is_given_up():
    device = verifier()
    key = device.key
    assert ops.DeviceVerifier.of_key(key) is device
    del device
    gc.collect()
    with pytest.raises(KeyError):
        ops.DeviceVerifier.of_key(key)


def test_a_captured_step_refuses_what_its_graph_does_not_read():
    places = {"seeds": [1], "positions": [3]}
    _, drafts = chains(1, 2)
    _, others = chains(1, 2)
    device = verifier(max_passes=1, truncates=False)
    device.plan(drafts, **places)
    device.verify(logits_of(3))
    device._check_capture()  # What `verify` does while a graph is captured.
    device.plan(drafts, **places)
    with pytest.raises(mv.errors.DraftError, match="other memory"):
        device.plan(others, **places)
    with pytest.raises(mv.errors.DraftError, match="reads none"):
        device.plan(drafts, bitmask=np.full((3, 2), -1, np.int32), **places)
    device.plan([mv.Draft.chain([1])], **places)


def test_a_mask_of_a_captured_step_is_lifted_by_a_plan_without():
    draft, logits = deterministic(), logits_of(5)
    device, places = verifier(max_passes=1, truncates=False), {"seeds": [1], "positions": [3]}
    device.plan([draft], bitmask=np.full((5, 2), [0b1011, 0], np.int32), **places)
    memory = device.step(logits).edited.bitmask.data_ptr()
    device._check_capture()
    found = run(device, [draft], logits, **places)
    assert found[0] == mv.verify(draft, logits, seed=1, position=3)
    assert device.step(logits).edited.bitmask.data_ptr() == memory


def test_a_captured_step_needs_fixed_sizes():
    device = verifier()
    device.plan([deterministic()], seeds=[1], positions=[3])
    with pytest.raises(mv.errors.ParamsError, match="max_passes"):
        device._check_capture()


def test_seeds_and_positions_may_be_on_the_device():
    device = verifier()
    host, drafts = chains(3, 4, seed=1)
    logits = logits_of(15, 9)
    seeds = torch.tensor([3, -5, 1 << 40])
    words = [seed % (1 << 64) for seed in seeds.tolist()]
    for dtype in (torch.int64, torch.int32):
        positions = torch.tensor([7, 0, 99], dtype=dtype)
        wanted = mv.verify_batch(host, logits, seeds=words, positions=positions.tolist())
        with HostReads() as reads:
            device.plan(drafts, seeds=seeds, positions=positions)
            device.verify(logits)
        assert reads.places == []
        assert device.host() == wanted


@pytest.mark.parametrize("name", ["seeds", "positions"])
@pytest.mark.parametrize("values", [torch.zeros(2), torch.zeros(2, 1, dtype=torch.int64)])
def test_seeds_on_the_device_that_are_no_integers_are_refused(name, values):
    _, drafts = chains(2, 2)
    given = {"seeds": [1, 2], "positions": [3, 4]} | {name: values}
    with pytest.raises(mv.errors.ParamsError, match=rf"{name}: found .*, wanted integers"):
        verifier().plan(drafts, **given)


def test_as_many_seeds_on_the_device_as_drafts_are_wanted():
    _, drafts = chains(2, 2)
    with pytest.raises(mv.errors.ParamsError, match="seeds: found 3 entries, wanted 2"):
        verifier().plan(drafts, seeds=torch.arange(3), positions=[3, 4])
