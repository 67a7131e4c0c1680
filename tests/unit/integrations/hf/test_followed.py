"""Logits processors of the user's own that keep state: called as plain `generate` calls them."""

from __future__ import annotations

import functools
import threading
from types import MethodType

import pytest
import torch
from transformers.generation import LogitsProcessor, LogitsProcessorList, StoppingCriteria

import mtp_verify as mv
from mtp_verify.decoder import decode
from mtp_verify.integrations.hf import followed
from tests.models import VOCAB, TreeDrafter, prompt, tiny_model

PARENTS = [-1, 0, 0, 0, 1, 1, 2, 5, 0]


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


class Turning(LogitsProcessor):
    """Bans other tokens at each call, and keeps a record of its calls inside and outside."""

    def __init__(self, log=None):
        self.count, self.log, self.sum = 0, log, torch.zeros(1)

    def __call__(self, input_ids, scores):
        self.count += 1
        self.sum += float(scores.max())
        if self.log is not None:
            self.log.append(input_ids[0].tolist())
        scores[:, (torch.arange(3) * 5 + self.count) % VOCAB] = -torch.inf  # in place
        return scores


def settings(ids, **options):
    return {
        "attention_mask": (ids != 0).long(), "max_new_tokens": 12, "do_sample": False,
        "pad_token_id": 0, "return_dict_in_generate": True, "output_scores": True, **options,
    }  # fmt: skip


def both(model, ids, make, **options):
    """Plain and drafted output, each with the processors that `make` makes, and those."""
    own = make()
    plain = model.generate(
        ids, logits_processor=LogitsProcessorList(own), **settings(ids, **options)
    )
    ours = make()
    drafter = TreeDrafter(PARENTS, text=plain.sequences[0, int((ids[0] == 0).sum()) :].tolist())
    call = mv.hf.speculative(drafter, stats=(stats := decode.Stats()))
    found = model.generate(
        ids, logits_processor=LogitsProcessorList(ours), custom_generate=call,
        **settings(ids, **options),
    )  # fmt: skip
    assert found.sequences.equal(plain.sequences)
    for one, other in zip(found.scores, plain.scores, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert 0 < stats.accepted < stats.drafted
    return own, ours


@pytest.mark.parametrize("num_padding", [0, 3])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}, {"forced_eos_token_id": 4}])
def test_the_users_object_gets_the_calls_of_plain_generation(llama, num_padding, options):
    ids = torch.nn.functional.pad(prompt(), (num_padding, 0))
    logs = [], []
    made = iter(logs)
    (own,), (ours,) = both(llama, ids, lambda: [Turning(next(made))], **options)
    assert ours.count == own.count == 12
    torch.testing.assert_close(ours.sum, own.sum)
    assert logs[0] == logs[1]
    assert len(logs[1]) == 12


def test_processors_may_share_what_they_keep(llama):
    class Follows(LogitsProcessor):
        def __init__(self, other):
            self.other = other

        def __call__(self, input_ids, scores):
            return scores.index_fill(1, torch.tensor([self.other.count % VOCAB]), 3.0)

    def make():
        first = Turning()
        return [first, Follows(first)]

    own, ours = both(llama, prompt(), make)
    assert ours[0].count == own[0].count > 0


def test_bound_methods_partials_and_allowed_tokens_keep_state_too(llama):
    class Allows:
        def __init__(self):
            self.count = 0

        def allow(self, row, tokens):
            self.count += 1
            return [t for t in range(VOCAB) if (t + self.count) % 3]

        def shift(self, input_ids, scores):
            self.count += 1
            return scores.roll(self.count, 1)

    def turn(log, input_ids, scores):
        log.append(1)
        return scores.roll(len(log), 1)

    seen = []

    def make():
        seen.append((Allows(), []))
        return [seen[-1][0].shift, functools.partial(turn, seen[-1][1])]

    both(llama, prompt(), make)
    assert [(a.count, len(log)) for a, log in seen] == [(12, 12)] * 2
    allows = [Allows(), Allows()]
    options = settings(prompt(), output_scores=False)
    plain = llama.generate(prompt(), prefix_allowed_tokens_fn=allows[0].allow, **options)
    drafter = TreeDrafter(PARENTS, text=plain.sequences[0].tolist())
    call = mv.hf.speculative(drafter)
    found = llama.generate(
        prompt(), prefix_allowed_tokens_fn=allows[1].allow, custom_generate=call, **options
    )
    assert found.sequences.equal(plain.sequences)
    assert allows[0].count == allows[1].count == 12


def test_a_criterion_sees_the_state_at_its_token(llama):
    class Ends(StoppingCriteria):
        def __init__(self, processor):
            self.processor, self.seen = processor, []

        def __call__(self, input_ids, scores, **_options):
            self.seen.append(self.processor.count)
            return torch.tensor([self.processor.count >= 7])

    ends = []

    def run(**more):
        processor = Turning()
        ends.append(Ends(processor))
        options = settings(prompt(), stopping_criteria=[ends[-1]], output_scores=False)
        list_ = LogitsProcessorList([processor])
        return llama.generate(prompt(), logits_processor=list_, **options, **more).sequences

    plain = run()
    drafter = TreeDrafter(PARENTS, text=plain[0].tolist())
    assert run(custom_generate=mv.hf.speculative(drafter)).equal(plain)
    assert ends[0].seen == ends[1].seen == [1, 2, 3, 4, 5, 6, 7]
    assert ends[1].processor.count == 7


@pytest.mark.parametrize("rule", ["coupled", "auto"])
def test_sampled_rows_have_the_state_of_their_own_path(llama, rule):
    """With one seed, drafts change no token; else each token has a place in its row."""

    def run(drafter):
        call = mv.hf.speculative(drafter, rule=rule, seed=5)
        options = settings(prompt(), do_sample=True, top_k=6, custom_generate=call)
        return llama.generate(
            prompt(), logits_processor=LogitsProcessorList([Turning()]), **options
        )

    plain = run(None)
    drafted = run(TreeDrafter(PARENTS, text=plain.sequences[0].tolist()))
    if rule == "coupled":
        assert drafted.sequences.equal(plain.sequences)
    for count, (row, token) in enumerate(
        zip(drafted.scores, drafted.sequences[0, 9:], strict=True)
    ):
        assert row.isfinite().sum() == 6
        assert row[0, token].isfinite()
        assert row[0, (torch.arange(3) * 5 + count + 1) % VOCAB].isinf().all()


def test_in_a_batch_one_that_a_call_changes_is_refused_by_name(llama):
    ids = torch.cat([prompt(), prompt(seed=4)])
    processor = Turning()
    with pytest.raises(
        mv.errors.ParamsError, match=r"logits processor Turning keeps state .* batch"
    ):
        llama.generate(
            ids, logits_processor=LogitsProcessorList([processor]),
            custom_generate=mv.hf.speculative(mv.drafters.NGram()), **settings(ids),
        )  # fmt: skip
    assert processor.count == 0


class Bias(LogitsProcessor):
    """Has attributes of many kinds, and changes none."""

    def __init__(self, shift):
        self.row = torch.linspace(-1, 1, VOCAB).roll(shift)
        self.row[0] = torch.nan
        self.words, self.names, self.me = {"a": [1, (2.0, None)]}, {"b"}, self
        self.call = MethodType(lambda self, x: x, self)

    def __call__(self, input_ids, scores):
        return scores + self.row.nan_to_num()


def test_in_a_batch_one_that_no_call_changes_is_called(llama):
    ids = torch.cat([prompt(), prompt(seed=4)])
    options = settings(ids, logits_processor=LogitsProcessorList([Bias(3)]))
    plain = llama.generate(ids, **options)
    call = mv.hf.speculative(mv.drafters.NGram(min_ngram=1))
    found = llama.generate(ids, custom_generate=call, **options)
    assert found.sequences.equal(plain.sequences)


def test_what_cannot_be_copied_is_refused_by_name(llama):
    class Locked(Bias):
        def __init__(self):
            super().__init__(2)
            self.lock = threading.Lock()

    own = Locked()
    call = mv.hf.speculative(mv.drafters.NGram(min_ngram=1))
    options = settings(prompt(), custom_generate=call)
    with pytest.raises(mv.errors.ParamsError, match="Locked may keep state and cannot be copied"):
        llama.generate(prompt(), logits_processor=LogitsProcessorList([own]), **options)
    as_function = LogitsProcessorList([lambda ids, scores: own(ids, scores)])
    found = llama.generate(prompt(), logits_processor=as_function, **options)
    plain = llama.generate(
        prompt(), logits_processor=LogitsProcessorList([own]), **settings(prompt())
    )
    assert found.sequences.equal(plain.sequences)


def test_models_inside_are_not_copied(llama):
    class Asks(LogitsProcessor):
        def __init__(self):
            self.model, self.count = tiny_model("llama", 4), 0

        def __call__(self, input_ids, scores):
            self.count += 1
            models.add(id(self.model))
            with torch.no_grad():
                return scores + self.model(input_ids).logits[:, -1]

    models = set()
    own, ours = both(llama, prompt(), lambda: [Asks()])
    assert models == {id(own[0].model), id(ours[0].model)}
    assert ours[0].count == 12


def test_partials_are_compared_by_all_their_parts():
    def made(first, second):
        return [functools.partial(max, [first], key=None), functools.partial(max, [second])]

    assert followed._is_same(made(1, 2), made(1, 2), set())
    for other in (made(1, 3), made(3, 2), made(1, 2)[::-1]):
        assert not followed._is_same(made(1, 2), other, set())
