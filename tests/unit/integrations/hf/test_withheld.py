"""What `generate` gives itself and keeps from custom code, and what it would do at the ends."""

from __future__ import annotations

import warnings
from threading import Thread

import pytest
import torch
from transformers import StoppingCriteria, TextIteratorStreamer, TextStreamer

import mtp_verify as mv
from tests.models import TreeDrafter, prompt, tiny_model

PARENTS = [-1, 0, 0, 1, 1, 3]


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


class Numbers:
    """A tokenizer whose words are the tokens' numbers."""

    def decode(self, ids, **_options):
        return "".join(f"{int(token)} " for token in ids)


def settings(ids, **options):
    mask = torch.ones_like(ids)
    return {
        "attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0,
        **options,
    }  # fmt: skip


def both(model, ids, **options):
    """Plain and drafted output of `generate`."""
    plain = model.generate(ids, **settings(ids, **options))
    tokens = plain if isinstance(plain, torch.Tensor) else plain.sequences
    drafter = TreeDrafter(PARENTS, text=tokens[0].tolist())
    call = mv.hf.speculative(drafter)
    return plain, model.generate(ids, **settings(ids, **options), custom_generate=call)


@pytest.mark.parametrize("skip_prompt", [True, False])
def test_generates_own_streamer_gets_prompt_and_text_once(llama, skip_prompt, capsys):
    both(llama, prompt(), streamer=TextStreamer(Numbers(), skip_prompt=skip_prompt))
    plain, drafted = (line.split() for line in capsys.readouterr().out.splitlines())
    assert plain == drafted
    assert len(plain) == 12 + (0 if skip_prompt else prompt().shape[1])


def test_an_iterator_of_generates_own_streamer_ends(llama):
    ids = prompt()
    expected = llama.generate(ids, **settings(ids))[0, ids.shape[1] :]
    streamer = TextIteratorStreamer(Numbers(), skip_prompt=True, timeout=20)
    call = settings(ids, streamer=streamer, custom_generate=mv.hf.speculative(mv.drafters.NGram()))
    thread = Thread(target=llama.generate, args=(ids,), kwargs=call)
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text.split() == [str(int(token)) for token in expected]


class Record(list):
    """A streamer that is false while it is empty."""

    put = list.append

    def end(self):
        self.append(None)


def test_a_streamer_may_be_an_empty_list(llama):
    record = Record()
    _, drafted = both(llama, prompt(), streamer=record)
    plain, ours = record[:14], record[14:]
    assert plain[-1] is ours[-1] is None
    assert torch.equal(plain[0], ours[0])
    assert torch.cat(ours[1:-1]).tolist() == drafted[0, prompt().shape[1] :].tolist()


def test_two_streamers_are_refused(llama):
    streamer = TextStreamer(Numbers())
    call = mv.hf.speculative(None, streamer=streamer)
    with pytest.raises(mv.errors.ParamsError, match="streamer is given to generate and to"):
        llama.generate(prompt(), **settings(prompt(), streamer=streamer), custom_generate=call)


@pytest.mark.parametrize("name", ["assistant_model", "synced_gpus"])
@pytest.mark.filterwarnings("ignore")  # transformers comments on some of these settings
def test_what_generate_keeps_to_itself_is_refused_by_name(llama, name):
    value = True if name == "synced_gpus" else tiny_model("llama", 2)
    call = mv.hf.speculative(mv.drafters.NGram())
    with pytest.raises(mv.errors.ParamsError, match=f"generate's {name} cannot be combined"):
        llama.generate(prompt(), **settings(prompt(), **{name: value}), custom_generate=call)


def test_a_caller_that_is_no_generate_is_left_alone(llama):
    def wrapped(*args, custom_generate="mine", streamer="mine too", **kwargs):
        return mv.hf.speculative(mv.drafters.NGram())(*args, **kwargs)

    plain = llama.generate(prompt(), **settings(prompt()))
    found = llama.generate(prompt(), **settings(prompt()), custom_generate=wrapped)
    assert torch.equal(found, plain)


class Sees(StoppingCriteria):
    """Ends a text when its last score is high, and keeps what it saw of its row."""

    def __init__(self, limit):
        self.limit, self.seen = limit, {}

    def __call__(self, input_ids, scores, **_options):
        if scores is None:
            self.seen[None] = True
            return torch.zeros(len(input_ids), dtype=torch.bool)
        for ids, row in zip(input_ids, scores[-1], strict=True):
            self.seen[tuple(ids.tolist())] = (len(scores), row)
        return scores[-1].max(-1).values > self.limit


@pytest.mark.parametrize("num_rows", [1, 2])
@pytest.mark.parametrize("limit", [1e9, 3.0])
def test_criteria_get_the_scores_that_generate_gives_them(llama, num_rows, limit):
    ids = torch.cat([prompt(seed=seed) for seed in range(num_rows)])
    sees = [], []
    for place in range(2):
        own = Sees(limit)
        options = settings(
            ids, stopping_criteria=[own], return_dict_in_generate=True, output_scores=True,
            repetition_penalty=1.3, encoder_repetition_penalty=1.2,
        )  # fmt: skip
        if place:
            options["custom_generate"] = mv.hf.speculative(mv.drafters.NGram(min_ngram=1))
        sees[place].extend([llama.generate(ids, **options), own.seen])
    (plain, wanted), (drafted, found) = sees
    assert torch.equal(drafted.sequences, plain.sequences)
    ended = drafted.sequences.shape[1] < ids.shape[1] + 12
    assert ended == (limit == 3.0)
    assert len(found) > 0
    for text, (count, row) in found.items():
        assert wanted[text][0] == count
        torch.testing.assert_close(row, wanted[text][1], atol=1e-4, rtol=1e-4)


def test_without_output_scores_criteria_get_none(llama):
    own = Sees(0.0)
    both(llama, prompt(), stopping_criteria=[own])
    assert own.seen == {None: True}


def test_a_text_beyond_the_models_context_is_refused(llama):
    context = llama.config.max_position_embeddings
    ids = prompt(context - 4)
    plain, drafted = both(llama, ids, max_new_tokens=4)
    assert torch.equal(plain, drafted)
    call = mv.hf.speculative(mv.drafters.NGram())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for length, room in ((context - 4, 4), (context + 3, 0)):
            ids = prompt(length)
            told = f"max_new_tokens: found 9 behind a prompt of {length} .* wanted {room} at most"
            with pytest.raises(mv.errors.ParamsError, match=told):
                llama.generate(ids, **settings(ids, max_new_tokens=9), custom_generate=call)
