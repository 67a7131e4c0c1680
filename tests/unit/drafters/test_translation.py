"""Between tokenizers: shared tokens, a growing text cut again, drafts over a sub-vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.drafters import Model, ModelTree, Request, Translation
from mtp_verify.testing import TableTarget
from tests.models import tiny_model
from tests.vocabularies import of_words, trained

TEXT = (
    "The rule decides.\n\nD\u00e9j\u00e0 vu: \u6f22\u5b57 and \U0001f642; "
    "x = [1, 2]\n  indented words "
)
GREEDY = mv.SamplingParams(temperature=0.0)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def crossing(**options):
    """Target and drafter over texts of a, b and c; what both know is a, b and ba."""
    target, small = of_words(["a", "b", "ab", "ba"]), of_words(["c", "ba", "b", "a"])
    translation = Translation(small, target)
    large = tiny_model("llama", seed=1, vocab_size=4)
    drafter = tiny_model("llama", seed=2, vocab_size=4)
    return large, drafter, Model(drafter, translation=translation, **options)


def test_tokens_are_matched_by_the_bytes_that_they_stand_for():
    pieces, words = trained("pieces", 700), trained("bytes", 600)
    translation = Translation(pieces, words)
    assert (np.diff(translation.target_ids) > 0).all()
    assert len(set(translation.draft_ids.tolist())) == len(translation.draft_ids)
    shared = dict(zip(translation.target_ids.tolist(), translation.draft_ids.tolist(), strict=True))
    word = words.convert_tokens_to_ids("\u0120the")
    assert shared[word] == pieces.convert_tokens_to_ids("\u2581the")
    # Half of a character: a byte token of either kind.
    assert shared[words.convert_tokens_to_ids("\u00c3")] == pieces.convert_tokens_to_ids("<0xC3>")
    # The end by its role, whatever its name.
    assert shared[words.eos_token_id] == pieces.eos_token_id
    assert len(shared) > 500
    assert "shared=" in repr(translation)


def test_a_tokenizer_with_itself_shares_every_token():
    for tokenizer in (trained("pieces", 700), trained("bytes", 600)):
        translation = Translation(tokenizer, tokenizer)
        assert np.array_equal(translation.draft_ids, translation.target_ids)
        # Byte tokens of single letters that have tokens of their own are never drawn.
        assert len(tokenizer) - len(translation.target_ids) < 128


@pytest.mark.parametrize(
    ("draft", "target"),
    [("bytes", "pieces"), ("pieces", "bytes"), ("bytes", "bytes"), ("pieces", "pieces")],
)
def test_a_growing_text_is_cut_as_the_whole_text_would_be(draft, target):
    draft, target = (trained(kind, size) for kind, size in ((draft, 650), (target, 600)))
    text = TEXT * 9
    tokens = ids_of(target, text)
    transcript = Translation(draft, target).start()
    for count in [*range(0, len(tokens), 3), len(tokens)]:
        ids = transcript.update(tokens[:count])
        so_far = target.decode(tokens[:count])
        if "\ufffd" not in so_far:
            assert ids == ids_of(draft, so_far)
    assert ids == ids_of(draft, text)
    # Most of it is settled: what is cut again has no more than a window's length.
    assert len(tokens) - transcript._num_settled <= 96


def test_what_begins_a_character_is_passed_on_byte_by_byte():
    words, pieces = trained("bytes", 600), trained("pieces", 700)
    tokens = ids_of(words, "\U0001f642")
    assert len(tokens) == 4
    transcript = Translation(pieces, words).start()
    names = [f"<0x{byte:02X}>" for byte in "\U0001f642".encode()]
    for count in range(1, 4):
        ids = transcript.update(tokens[:count])
        assert pieces.convert_ids_to_tokens(ids) == names[:count]


def test_special_tokens_go_by_name_or_role_or_are_left_out():
    words, pieces = trained("bytes", 600), trained("pieces", 700)
    transcript = Translation(words, pieces).start()
    text = ids_of(pieces, "the rule")
    only_here = pieces.convert_tokens_to_ids("<only here>")
    ids = transcript.update([pieces.bos_token_id, *text, only_here, *text, pieces.eos_token_id])
    rule = ids_of(words, "the rule")
    assert ids == [*rule, *rule, words.eos_token_id]
    # The name in a text is text.
    transcript = Translation(pieces, words).start()
    ids = transcript.update(ids_of(words, "</s>"))
    assert pieces.eos_token_id not in ids
    assert pieces.decode(ids).strip() == "</s>"


def test_a_sequence_starts_as_the_drafters_sequences_do():
    words, pieces = trained("bytes", 600), trained("pieces", 700)
    starting = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(pieces.backend_tokenizer.to_str()),
        bos_token="<s>", eos_token="</s>", add_bos_token=True,
    )  # fmt: skip
    from tokenizers.processors import TemplateProcessing

    starting.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", starting.bos_token_id)]
    )
    rule = ids_of(pieces, "the rule")
    first = starting.bos_token_id
    assert Translation(starting, words).start().update(ids_of(words, "the rule")) == [first, *rule]
    both = Translation(starting, pieces).start()
    assert both.update([pieces.bos_token_id, *rule]) == [first, *rule]


def test_draft_states_the_restricted_rows_that_it_was_drawn_from():
    _, small, drafter = crossing(num_tokens=3, params=mv.SamplingParams(temperature=0.8))
    way = drafter.translation
    assert way.target_ids.tolist() == [0, 1, 3]
    assert way.draft_ids.tolist() == [3, 2, 1]
    request = Request(id=0, tokens=[2, 0, 2], prompt_len=3, seed=4)  # "ab" "a" "ab"
    drafter.start(request)
    draft = drafter.propose([request], [9])[0]
    assert draft.law == "chain"
    ids = [3, 1, 3, 2]  # "a" "ba" "a" "b"
    with torch.no_grad():
        for node, token in enumerate(draft.tokens[1:].tolist()):
            row = small(torch.tensor([ids])).logits[0, -1][way.draft_ids]
            drawn = mv._core.draw(row[None], drafter.params, 4, 2, node + 1)
            assert token == way.target_ids[drawn]
            ids += way.to_draft([token])
    draft.validate()


@pytest.mark.parametrize("kind", [Model, ModelTree])
def test_greedy_output_is_the_targets_and_no_token_is_run_twice(kind):
    large, small, drafter = crossing()
    drafter = kind(small, translation=drafter.translation)
    widths = []
    forward = drafter.target.forward

    def counted(tokens, *rest, **options):
        widths.append(tokens.shape[1])
        return forward(tokens, *rest, **options)

    drafter.target.forward = counted
    decoder = Decoder(large, drafter, GREEDY)
    plain = decoder.generate([0, 2], max_new_tokens=40, speculate=False)
    result = decoder.generate([0, 2], max_new_tokens=40)
    assert result.tokens == plain.tokens
    assert result.stats.drafted > 0
    if kind is Model:  # A tree's inner nodes are run again at every level.
        # The prompt once; then what was emitted, and what is cut otherwise now that it goes on.
        assert max(widths[1:]) <= 8


def test_a_drafter_of_the_same_mind_is_always_right():
    # Both models know the same two letters under different numbers, and follow the same table.
    rows = np.random.default_rng(3).normal(size=(64, 2)) * 2

    def row(path):
        return rows[hash(tuple(path)) % 64]

    def swapped_row(path):
        return row(1 - token for token in path)[::-1].copy()

    target, swapped = TableTarget(row, 2), TableTarget(swapped_row, 2)
    translation = Translation(of_words(["b", "a"]), of_words(["a", "b"]))
    params = mv.SamplingParams()
    drafter = Model(swapped, num_tokens=4, params=params, translation=translation)
    stats = Decoder(target, drafter, params).generate([0, 1], max_new_tokens=60, seed=2).stats
    assert stats.accepted == stats.drafted > 0


@pytest.mark.parametrize("kind", [Model, ModelTree])
def test_a_row_without_a_shared_token_counts_all_of_them_alike(kind):
    translation = Translation(of_words(["b", "a", "c"]), of_words(["a", "d", "c"]))
    away = TableTarget(lambda path: [0.0, -np.inf, -np.inf], 3)  # all on "b"
    request = Request(id=0, tokens=[0], prompt_len=1, seed=0)
    drafter = kind(away, translation=translation)
    drafter.start(request)
    draft = drafter.propose([request], [3])[0]
    assert draft.num_nodes == 4
    assert set(draft.tokens.tolist()) <= {0, 2}


@pytest.mark.parametrize("kind", [Model, ModelTree])
def test_a_text_without_a_character_drafts_nothing(kind):
    translation = Translation(of_words(["b", "a"]), of_words(["a", "c"]))
    drafter = kind(TableTarget(lambda path: [0.0, 0.0], 2), translation=translation)
    request = Request(id=0, tokens=[9], prompt_len=1, seed=0)  # a padding row of the target's
    drafter.start(request)
    assert drafter.propose([request], [3])[0].num_nodes == 1


def test_end_token_ends_a_draft_and_a_budget_is_kept():
    target, small = of_words(["a", "b"], end="<end>"), of_words(["b", "a"], end="</s>")
    translation = Translation(small, target)
    assert translation.to_draft([2]) == [2]
    ends = TableTarget(lambda path: [0.0, 0.0, 9.0], 3)
    drafter = Model(ends, num_tokens=4, translation=translation)
    for eos_ids, budget, wanted in (({2}, 9, [0, 2]), (set(), 2, [0, 2, 2])):
        request = Request(id=0, tokens=[0], prompt_len=1, eos_ids=frozenset(eos_ids), seed=0)
        drafter.start(request)
        assert drafter.propose([request], [budget])[0].tokens.tolist() == wanted


def test_refusals():
    words = of_words(["a", "b"])
    with pytest.raises(mv.errors.ParamsError, match="none in common") as caught:
        Translation(of_words(["c"]), words)
    assert caught.value.slug == "no_shared_tokens"
    with pytest.raises(
        mv.errors.UnsupportedModelError, match="drafter's tokenizer: found a object"
    ) as caught:
        Translation(object(), words)
    assert caught.value.slug == "unknown_tokenizer"
    for decoder, way in ((None, "spaces"), (decoders.WordPiece(), "WordPiece")):
        tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        if decoder is not None:
            tokenizer.decoder = decoder
        with pytest.raises(mv.errors.UnsupportedModelError, match=f"joins tokens by {way}"):
            Translation(words, PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    wide = Translation(of_words(["c", "d", "a"]), words)
    with pytest.raises(
        mv.errors.UnsupportedModelError, match="knows token 2 of the drafter"
    ) as caught:
        Model(tiny_model("llama", vocab_size=2), translation=wide)
    assert caught.value.slug == "vocab_mismatch"
    back = Translation(words, of_words(["c", "d", "a"]))
    drafter = Model(tiny_model("llama", vocab_size=3), translation=back)
    with pytest.raises(mv.errors.UnsupportedModelError, match="knows token 2 of the target"):
        Decoder(tiny_model("llama", vocab_size=2), drafter)
