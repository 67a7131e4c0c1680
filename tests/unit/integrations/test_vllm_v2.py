"""V2's sampler driven directly, with the fields and tensors of vLLM 0.32 and 0.33, without vLLM."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.integrations import vllm as plugin
from mtp_verify.integrations.vllm import on_device, seams
from mtp_verify.testing import JointLaw, assert_same_law
from mtp_verify.testing.device.backends import BACKENDS, ready, ready_copy
from mtp_verify.verifier.kernels.device.chains import ChainVerifier
from tests.vllm_standins import STATES, batch, stand_in, states

VOCAB, DEPTH = 45, 3  # No multiple of a mask's 32 bits.
# A full chain, a plain request, a placeholder in the middle, a greedy one, one that ends at once.
DRAFTS = [[3, 1, 4], [], [7, -1, 2], [9, 9], [-1, 0, 0], [44]]
PLACES = [5, 0, 11, 3, 2, 7]
TEMPERATURES = [1.0, 0.7, 1.3, 0.0, 1.0, 0.3]
SEEDS = [1, -5, 3, 4, 1 << 33, 6]
POSITIONS = [0, 17, 100_000, 3, 5, 1 << 20]


@pytest.fixture(autouse=True)
def _warnings_anew():
    seams.warn_once.cache_clear()


@pytest.fixture
def engine(monkeypatch):
    return stand_in(monkeypatch)


@pytest.fixture(
    scope="module", params=[own for own in BACKENDS if own.is_there], ids=lambda own: own.name
)
def backend(request):
    """The name of a backend that runs here, Triton's in its interpreter."""
    with ready(request.param), ready_copy(request.param, request.param.package):
        yield request.param.name


@pytest.fixture
def kernels(backend, monkeypatch):
    """Steps on this backend."""

    @lru_cache
    def verifier_of(vocab, depth, device):
        return ChainVerifier(vocab, depth, device, backend=backend)

    monkeypatch.setattr(on_device, "verifier_of", verifier_of)


class Step:
    """A batch and what a sampler holds of its requests."""

    def __init__(self, engine, rng, drafts=None, places=None, *, top_k=None, dtype=None, **changes):
        drafts = DRAFTS if drafts is None else drafts
        self.drafts, self.places = drafts, PLACES[: len(drafts)] if places is None else places
        self.temperatures = changes.get("temperatures", TEMPERATURES)[: len(drafts)]
        self.seeds = changes.get("seeds", SEEDS)[: len(drafts)]
        self.positions = changes.get("positions", POSITIONS)[: len(drafts)]
        self.top_k = top_k or [0] * len(drafts)
        self.given = batch(drafts, self.places, self.positions)
        rows = len(self.given["pos"])
        self.logits = torch.tensor(rng.normal(size=(rows, VOCAB)) * 2, dtype=dtype or torch.float32)
        self.draft_logits = None
        own = states(self.temperatures, self.seeds, self.places, self.top_k)
        self.plain = engine.plain(own)
        self.sampler = engine.v2(self.plain, DEPTH)

    def draw(self, rng, columns=VOCAB, dtype=torch.float32):
        """Give the drafter rows of all states; those of no request are no numbers."""
        rows = torch.full((STATES, DEPTH, columns), torch.nan, dtype=dtype)
        rows[self.places] = torch.tensor(
            rng.normal(size=(len(self.places), DEPTH, columns)), dtype=dtype
        )
        self.draft_logits = rows
        return self

    def run(self):
        processed, sampled, count = self.sampler._verify(
            self.logits, self.draft_logits, *self.given.values()
        )
        assert (sampled.dtype, sampled.shape) == (torch.int64, (len(self.drafts), DEPTH + 1))
        assert count.dtype == torch.int32
        self.processed = processed
        return [row[:n] for row, n in zip(sampled.tolist(), count.tolist(), strict=True)]

    def wanted(self, request, rule):
        """What the core emits for a request, from vLLM's processed rows or the model's own."""
        tokens = self.drafts[request]
        tokens = tokens[: next((i for i, t in enumerate(tokens) if t < 0), len(tokens))]
        start = int(self.given["cu_num_logits"][request])
        temperature = float(np.float32(self.temperatures[request]))
        draft = mv.Draft.chain(tokens)
        if self.draft_logits is not None and tokens and temperature and rule != "coupled":
            q = self.draft_logits[self.places[request], : len(tokens)].float() / temperature
            full = torch.zeros(len(tokens), VOCAB)
            full[:, : q.shape[1]] = q.softmax(1)
            draft = mv.Draft.chain(tokens, full)
        return mv.verify(
            draft,
            self.logits[start : start + len(tokens) + 1],
            mv.SamplingParams(temperature=temperature, top_k=self.top_k[request], preset="vllm"),
            rule=rule,
            seed=self.seeds[request] % (1 << 64),
            position=self.positions[request],
        ).tokens.tolist()


RULES = ["auto", "token", "block", "target_only", "coupled"]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["auto", "coupled"])
def test_drafts_of_the_past_are_verified_as_the_core_does(engine, rule, dtype, rng):
    plugin.install(rule)
    step = Step(engine, rng, dtype=dtype, top_k=[0, 5, 0, 0, 2, 0])
    before = step.logits.clone()
    found = step.run()
    assert torch.equal(step.logits, before)
    for request in range(len(DRAFTS)):
        assert found[request] == step.wanted(request, rule), request


@pytest.mark.usefixtures("kernels")
def test_rows_that_vllm_does_not_process_are_read_as_they_are(engine, rng):
    """At temperatures 0 and 1 the model's own rows arrive, here bfloat16."""
    plugin.install()
    step = Step(engine, rng, dtype=torch.bfloat16, temperatures=[1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    found = step.run()
    assert step.processed is step.logits
    assert found == [step.wanted(request, "auto") for request in range(len(DRAFTS))]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("columns", [VOCAB, 33])
@pytest.mark.parametrize("rule", RULES)
def test_drawn_drafts_are_verified_as_the_core_does(engine, rule, columns, rng):
    drafts = [[token % columns if token > 0 else token for token in own] for own in DRAFTS]
    plugin.install(rule)
    step = Step(engine, rng, drafts).draw(rng, columns)
    found = step.run()
    rule = "token" if rule == "auto" else rule  # The engine's own method, "standard".
    for request in range(len(drafts)):
        assert found[request] == step.wanted(request, rule), request


@pytest.mark.parametrize(("is_block", "rule"), [(False, "token"), (True, "block")])
def test_the_engines_method_is_kept_unless_a_rule_is_asked_for(engine, is_block, rule, rng):
    plugin.install()
    step = Step(engine, rng, [[3, 1, 4]] * 6).draw(rng)
    step.sampler.use_block_verification = is_block
    assert step.run() == [step.wanted(request, rule) for request in range(6)]


def test_drafts_over_more_tokens_than_the_targets_are_compared_with_samples(engine, rng):
    plugin.install("block")
    step = Step(engine, rng).draw(rng, VOCAB + 3)
    step.drafts[5:] = [[VOCAB + 1]]
    step.given = batch(step.drafts, PLACES, POSITIONS)
    found = step.run()
    step.draft_logits = None
    step.drafts[5] = []
    assert found == [step.wanted(request, "auto") for request in range(len(DRAFTS))]


def test_a_draft_that_its_row_excludes_is_as_if_it_had_not_been_drawn(engine, rng):
    plugin.install()
    step = Step(engine, rng, [[3, 1, 4]]).draw(rng)
    step.draft_logits[PLACES[0], 1, 1] = -torch.inf
    found = step.run()
    step.drafts[0] = [3]
    assert found == [step.wanted(0, "token")]


def crowd(engine, logits, drafts, q=None, verified=None):
    """Many requests of one form and their own seeds; their first two tokens, -1 where none."""
    num, depth = len(drafts), len(drafts[0])
    own = states([1.0] * num, range(num), range(num))
    sampler = engine.v2(engine.plain(own), depth)
    given = batch(drafts, range(num), [7] * num)
    if verified is not None:
        given["verify_draft_sampled"] = batch(verified, range(num), [7] * num)["draft_sampled"]
    draft_logits = None if q is None else q.log().repeat(num, 1, 1)
    rows = logits.repeat(num, 1)
    _, sampled, count = sampler._verify(rows, draft_logits, *given.values())
    places = torch.arange(depth + 1)
    return torch.where(places < count[:, None], sampled, -1)[:, :2].numpy()


@pytest.mark.parametrize("rule", ["auto", "block", "target_only", "coupled"])
def test_two_tokens_have_the_targets_joint_law_for_drawn_drafts(engine, rule):
    # 5,500 requests: a total variation of 0.1 over 9 strings is found at alpha 1e-9.
    num = 5_500
    rng = np.random.default_rng(0)
    p = torch.tensor([[0.2, 0.5, 0.3], [0.25, 0.25, 0.5], [0.3, 0.1, 0.6]])
    q = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]])
    drawn = np.stack([rng.choice(3, num, p=row.double() / row.double().sum()) for row in q], axis=1)
    plugin.install(rule)
    out = crowd(engine, p.log(), drawn.tolist(), q)
    # Where a step emitted one token, the next step would draw the second: from the target's row.
    second = rng.choice(3, num, p=p[1].double())
    strings = np.stack([out[:, 0], np.where(out[:, 1] >= 0, out[:, 1], second)], axis=1)
    law = np.outer(p[0].double(), p[1].double()).reshape(-1)
    assert_same_law(strings, JointLaw(3, 2, law), min_tv=0.1)


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_drawn_token_that_the_grammar_forbids_is_rejected(engine, rule):
    # Forgetting it would emit token 1 with probability 3/4: a total variation of 1/4, found in
    # 5,000 requests at alpha 1e-9, as is 0.1.
    num = 5_000
    p, q = torch.tensor([0.0, 0.5, 0.5]), torch.tensor([0.5, 0.5, 0.0])
    drawn = np.random.default_rng(0).integers(0, 2, num)
    drafts = [[token, 0] for token in drawn.tolist()]
    verified = [[-1, -1] if token == 0 else [1, -1] for token in drawn.tolist()]
    plugin.install(rule)
    out = crowd(engine, p.log().repeat(3, 1), drafts, q.repeat(2, 1), verified)
    assert_same_law(out[:, :1], JointLaw(3, 1, p.double().numpy()), min_tv=0.1)


def test_a_draft_that_is_taken_out_although_it_is_possible_is_forgotten(engine, rng):
    plugin.install()
    step = Step(engine, rng, [[3, 1, 4]]).draw(rng)
    step.given["verify_draft_sampled"][2:] = -1
    found = step.run()
    step.drafts[0] = [3]
    assert found == [step.wanted(0, "token")]


def plain(step, requests):
    """The tokens of some requests in a step without drafts."""
    roots = step.given["cu_num_logits"][requests].long()
    names = ("expanded_idx_mapping", "pos", "draft_sampled", "expanded_local_pos")
    own = {name: step.given[name][roots] for name in names}
    places = np.array(step.places)[requests]
    sampled, processed = step.plain.sample(
        step.logits[roots],
        own["expanded_idx_mapping"],
        torch.from_numpy(places),
        places,
        own["pos"],
        own["draft_sampled"],
        own["expanded_local_pos"],
        np.zeros(len(places), np.int32),
    )
    assert sampled.dtype == torch.int64
    assert processed.shape == step.logits[roots].shape
    return sampled.tolist()


@pytest.mark.usefixtures("kernels")
def test_coupled_gives_the_tokens_of_plain_decoding(engine, rng):
    """The first token of each request, from a step with drafts and from one without."""
    plugin.install("coupled")
    step = Step(engine, rng, top_k=[0, 5, 0, 0, 2, 0])
    found = [tokens[0] for tokens in step.run()]
    assert plain(step, list(range(6))) == found
    assert plain(step, [4]) == found[4:5]
    assert plain(step, [3, 0, 1]) == [found[3], found[0], found[1]]


def decode(engine, table, request, length, proposals, companions=()):
    """Decode a request by steps of `_verify` or `sample` over rows that its last token chooses."""
    seed, temperature = request
    position, text = 0, [1]
    while len(text) < length + 1:
        drafts = [next(proposals), *([own] for own in companions)]
        places = list(range(3, 3 + len(drafts)))
        own = states(
            [temperature, *(1.0 for _ in companions)], [seed, *range(50, 50 + len(companions))],
            places,
        )  # fmt: skip
        subject = engine.plain(own)
        given = batch(drafts, places, [position] * len(drafts))
        tokens = given["draft_sampled"].clone()
        tokens[given["cu_num_logits"][:-1].long()] = text[-1]
        logits = table[tokens.clamp(min=0).long()]
        if any(drafts):
            _, sampled, count = engine.v2(subject, DEPTH)._verify(logits, None, *given.values())
            emitted = sampled[0, : int(count[0])].tolist()
        else:
            words = [given[name] for name in (
                "expanded_idx_mapping", "idx_mapping", "idx_mapping_np", "pos", "draft_sampled",
                "expanded_local_pos", "seq_lens_upper_bound_np",
            )]  # fmt: skip
            emitted = subject.sample(logits, *words)[0][:1].tolist()
        text += emitted
        position += len(emitted)
    return text[1 : length + 1]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_coupled_gives_equal_text_whatever_is_drafted_and_whoever_else_is_there(
    engine, temperature, rng
):
    plugin.install("coupled")
    table = torch.tensor(rng.normal(size=(VOCAB, VOCAB)) * 2, dtype=torch.float32)
    request, length = (42, temperature), 24

    def proposals():
        while True:
            yield rng.integers(0, VOCAB, rng.integers(0, DEPTH + 1)).tolist()

    def none():
        while True:
            yield []

    wanted = decode(engine, table, request, length, none())

    def foretold():
        # Drafts that are the text itself: each step accepts all of them.
        place = 0
        while True:
            yield wanted[place : place + DEPTH]
            place += DEPTH + 1

    for drafts, companions in (
        (none(), [7, 8]),
        (foretold(), []),
        (proposals(), []),
        (proposals(), [3]),
    ):
        assert decode(engine, table, request, length, drafts, companions) == wanted


def test_requests_do_not_depend_on_their_companions_or_chunks(engine, rng):
    plugin.install("block")
    step = Step(engine, rng).draw(rng)
    together = step.run()
    offsets = step.given["cu_num_logits"]
    for request in range(len(DRAFTS)):
        start, end = offsets[request : request + 2].tolist()
        part = dict(step.given)
        for name in ("draft_sampled", "pos", "expanded_idx_mapping", "expanded_local_pos"):
            part[name] = part[name][start:end]
        part["verify_draft_sampled"] = part["verify_draft_sampled"][start:end]
        part["cu_num_logits"] = offsets[request : request + 2] - start
        for name in ("idx_mapping", "idx_mapping_np", "seq_lens_upper_bound_np"):
            part[name] = part[name][request : request + 1]
        _, sampled, count = step.sampler._verify(
            step.logits[start:end], step.draft_logits, *part.values()
        )
        assert sampled[0, : int(count[0])].tolist() == together[request]


def test_drafts_that_the_device_has_trimmed_are_read_there(engine, rng):
    """Adaptive verification: the host's arrays say more drafts than there are."""
    plugin.install()
    step = Step(engine, rng, [[3], [1, 4], []])
    step.given["seq_lens_upper_bound_np"] = np.array([9, 9, 9])
    assert step.run() == [step.wanted(request, "auto") for request in range(3)]


def test_an_empty_batch_is_no_error(engine, rng):
    plugin.install()
    given = batch([], [], [])
    own = states([], [], [])
    sampler = engine.v2(engine.plain(own), DEPTH)
    rows = torch.zeros(STATES, DEPTH, VOCAB)
    for draft_logits in (None, rows):
        _, sampled, count = sampler._verify(torch.zeros(0, VOCAB), draft_logits, *given.values())
        assert (sampled.shape, count.shape) == ((0, DEPTH + 1), (0,))


# NumPy's, of the interpreter.
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("rule", ["auto", "block", "coupled"])
def test_rows_that_are_no_numbers_end_in_token_0_of_their_request_and_a_warning(engine, rule, rng):
    plugin.install(rule)
    step = Step(engine, rng).draw(rng)
    sound = step.run()
    for request in (1, 3):
        step.logits[int(step.given["cu_num_logits"][request])] = torch.nan
    step.logits[int(step.given["cu_num_logits"][4])] = -torch.inf
    with pytest.warns(RuntimeWarning, match="went on with token 0"):
        found = step.run()
    assert [found[request] for request in (0, 2, 5)] == [sound[request] for request in (0, 2, 5)]
    assert [found[request] for request in (1, 3, 4)] == [[0]] * 3


def test_a_drafters_row_that_is_no_number_ends_the_chain_there(engine, rng):
    plugin.install()
    step = Step(engine, rng, [[3, 1, 4]]).draw(rng)
    step.draft_logits[PLACES[0], 1] = torch.nan
    found = step.run()
    step.drafts[0] = [3]
    assert found == [step.wanted(0, "token")]


@pytest.mark.parametrize(
    ("rule", "trims", "wanted", "message"),
    [
        ("auto", False, "token", None),
        ("token", False, "token", None),
        ("block", False, "token", "draws drafts again from one noise: block is replaced by token"),
        ("block", True, "target_only", "trims drafts that it draws again"),
        ("token", True, "target_only", "trims drafts that it draws again"),
        ("target_only", True, "target_only", None),
    ],
)
def test_the_older_releases_drafts_are_not_taken_for_new_draws(
    monkeypatch, recwarn, rng, rule, trims, wanted, message
):
    """vLLM 0.32 keys its drafter's noise by seed and position, in every step alike."""
    engine = stand_in(monkeypatch, "0.32.0")
    plugin.install(rule)
    step = Step(engine, rng).draw(rng)
    step.sampler.enable_adaptive_verification = trims
    assert step.run() == [step.wanted(request, wanted) for request in range(len(DRAFTS))]
    assert [str(own.message) for own in recwarn if message and message in str(own.message)] or (
        message is None and not recwarn
    )


@pytest.mark.parametrize("rule", ["auto", "coupled"])
def test_nothing_is_read_on_the_host(engine, monkeypatch, rule, rng):
    """On a device each of these would wait for it."""
    plugin.install(rule)
    step = Step(engine, rng, temperatures=[1.0] * 6).draw(rng)
    verifier = ChainVerifier(VOCAB, DEPTH, torch.device("cpu"), backend="torch")
    # What the kernels of this backend read is not this module's.
    monkeypatch.setattr(verifier._module, "run", lambda *_: None)
    monkeypatch.setattr(on_device, "verifier_of", lambda *_: verifier)
    monkeypatch.setattr(on_device, "_faults", on_device._Faults())
    monkeypatch.setattr(on_device._Faults, "note", lambda *_: None)

    def refuse(*_):
        pytest.fail("read on the host")

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    step.sampler._verify(step.logits, step.draft_logits, *step.given.values())
