"""Every setting of `generate`: what plain generation gives, or refused by the name it has."""

from __future__ import annotations

import functools
import inspect
import re
import traceback
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.utils.generic import TransformersKwargs

import mtp_verify as mv
from mtp_verify.caches.names import cache_name
from tests.generate_context import EOS, Context
from tests.generate_settings import GROUPS, PAGE, Setting, page
from tests.models import TreeDrafter, tiny_model
from tests.other_models import compiled, other_model

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers comments on some settings

PARENTS = [-1, 0, 0, 0, 1, 1, 2, 5, 0]
WAYS = ("speculative", "generate")
WORDS = ("equal", "library", "custom code")
CASES = {f"{group}: {s.title}": s for group, settings in GROUPS.items() for s in settings}
CACHE = cache_name(GenerateDecoderOnlyOutput)
NAMES = {
    *vars(GenerationConfig()), *inspect.signature(GenerationMixin.generate).parameters,
    *TransformersKwargs.__optional_keys__,
}  # fmt: skip
# What `generate` takes beside them: for itself, and for the forward.
OF_FORWARDS = {
    "tokenizer", "assistant_tokenizer", "trust_remote_code", "input_ids", "attention_mask",
    "token_type_ids", "inputs_embeds", "logits_to_keep", "pixel_values", "cache", "past_key_values",
}  # fmt: skip
# Names of the library that are no settings, or that every run has.
NO_SETTINGS = {
    "self", "kwargs", "inputs", "custom_generate", "transformers_version",
    # What attention kernels are told of packed texts, and losses of batches.
    "cu_seq_lens_k", "cu_seq_lens_q", "max_length_k", "max_length_q", "num_items_in_batch",
    "seq_idx", "is_causal",
}  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Context:
    return Context()


def context_of(setting: Setting, shared: Context) -> Context:
    """The shared one, or one with the setting's own model."""
    if setting.model is None:
        return shared
    context = Context()
    if callable(setting.model):
        context.model = setting.model(context)
    elif setting.model.startswith("compiled "):
        form = setting.model.removeprefix("compiled ")
        context.model = compiled(form, tiny_model("llama", vocab_size=48))
    elif setting.model.startswith("vlm ") or setting.model in ("t5", "bart", "mamba", "rwkv"):
        context.model = other_model(setting.model.removeprefix("vlm "))
    else:
        context.model = tiny_model(setting.model)
    return context


def skip_unknown(options: dict[str, Any]) -> None:
    """Skip settings that this version of transformers does not have."""
    known = {*NAMES, *OF_FORWARDS, "nonsense"}
    if missing := options.keys() - known:
        pytest.skip(f"this version of transformers has no {', '.join(sorted(missing))}")


class Run:
    """One call of `generate`, with all that it leaves behind."""

    def __init__(self, setting: Setting, context: Context, way: str, plain: Any = None) -> None:
        own = setting.made(context)
        skip_unknown(own)
        ids = setting.ids(context) if callable(setting.ids) else getattr(context, setting.ids)
        options: dict[str, Any] = {"pad_token_id": 0}
        if ids is not None:
            options["attention_mask"] = (ids != 0).long()
        if "generation_config" not in own:
            options |= {
                "max_new_tokens": 12, "eos_token_id": EOS, "do_sample": False,
                "return_dict_in_generate": True, "output_scores": True, "output_logits": True,
            }  # fmt: skip
        self.options = {**options, **own}
        model = context.model
        self.takes_trees = setting.model not in ("qwen3_next", "mamba2")
        self.error: Exception | None = None
        self.output: Any = None
        drafter = None if way == "plain" else _drafter(ids, plain)
        try:
            torch.manual_seed(0)
            if way == "plain":
                self.output = model.generate(ids, **self.options)
            elif way == "speculative":
                call = mv.hf.speculative(drafter)
                self.output = model.generate(ids, **self.options, custom_generate=call)
            else:
                named = {"assistant_model", "prompt_lookup_num_tokens"} & own.keys()
                self.output = mv.hf.generate(
                    model, ids, drafter=None if named else drafter, **self.options
                )
        except Exception as error:  # noqa: BLE001 - what it was is what is judged
            self.error = error

    @property
    def sequences(self) -> torch.Tensor:
        output = self.output
        return output if isinstance(output, torch.Tensor) else output.sequences

    @property
    def counts(self) -> list[Any]:
        """What processors of the user's own have counted."""
        return [getattr(p, "count", None) for p in self.options.get("logits_processor") or ()]

    @functools.cached_property
    def shown(self) -> Any:
        """What a streamer has got; one of text may be given it in other pieces."""
        streamer = self.options.get("streamer")
        is_queue = hasattr(streamer, "text_queue")
        return "".join(streamer) if is_queue else getattr(streamer, "shown", None)


def _drafter(ids: Any, plain: Run) -> Any:
    """A tree that holds the text at times, or n-grams where there are several texts or none."""
    if (
        plain is not None
        and plain.error is None
        and len(plain.sequences) == 1
        and ids is not None
        and plain.takes_trees
    ):
        text = plain.sequences[0, int((ids[0] == 0).sum()) :].tolist()
        return TreeDrafter(PARENTS, text=text)
    return mv.drafters.NGram(min_ngram=1)


def verdict_on(setting: Setting, context: Context, way: str, *, is_run: bool) -> str:
    """ "equal", "library", "custom code", our refusal, or else what is wrong.

    Args:
        setting: to be tried.
        context: its model and prompts.
        way: of `WAYS`.
        is_run: plain generation may run it; what we refuse may be long or need a hub.
    """
    plain = Run(setting, context, "plain") if is_run else None
    run = Run(setting, context, way, plain)
    if isinstance(run.error, mv.MtpVerifyError):
        return str(run.error)
    if plain is None:
        return f"wrong: {run.error!r}, {run.output}"
    if run.error is not None:
        told = "".join(traceback.format_exception(run.error)[-3:])
        if plain.error is not None and type(plain.error) is type(run.error):
            return "library"
        raised_in = traceback.extract_tb(run.error.__traceback__)[-1].filename
        return "custom code" if "transformers" in raised_in else f"crash: {told}"
    if plain.error is not None:
        return f"wrong: plain generation raises {plain.error!r}"
    return difference(run, plain, setting) or "equal"


def difference(run: Run, plain: Run, setting: Setting) -> str:
    """What is not as it is in plain generation, "" if nothing is."""
    if type(run.output) is not type(plain.output):
        return f"wrong: {type(run.output)}, {type(plain.output)}"
    if run.sequences.dtype != plain.sequences.dtype:
        return f"wrong: {run.sequences.dtype}, {plain.sequences.dtype}"
    is_sampled = run.options.get("do_sample")
    if not is_sampled and not run.sequences.equal(plain.sequences):
        return f"wrong: {run.sequences.tolist()}, {plain.sequences.tolist()}"
    if not is_sampled and run.shown != plain.shown:
        return f"wrong: streamed {run.shown}, {plain.shown}"
    if not is_sampled and run.counts != plain.counts:
        return f"wrong: calls of processors {run.counts}, {plain.counts}"
    if isinstance(run.output, torch.Tensor):
        return ""
    skipped = {CACHE} if "cache" in setting.without else set()
    keys = [{k for k, v in r.output.items() if v is not None} - skipped for r in (run, plain)]
    if keys[0] != keys[1]:
        return f"wrong: {sorted(keys[0])}, {sorted(keys[1])}"
    if is_sampled:
        return _lawless(run, plain)
    return _rows_differ(run, plain, setting) or _caches_differ(run, plain, setting, keys[0])


def _rows_differ(run: Run, plain: Run, setting: Setting) -> str:
    for name in ("scores", "logits"):
        ours, theirs = run.output.get(name), plain.output.get(name)
        if ours is None:
            continue
        width = run.sequences.shape[1] - len(theirs)
        if len(ours) != len(theirs):
            return f"wrong: {len(ours)} {name}, {len(theirs)}"
        for step, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if one.shape != other.shape or one.dtype != other.dtype:
                return f"wrong: {name} {one.shape} {one.dtype}, {other.shape} {other.dtype}"
            # Of rows that have ended the library computes those of padding.
            going = (run.sequences[:, width + step :] != 0).any(1)
            if "rows" not in setting.without:
                gap = torch.isclose(one[going], other[going], atol=1e-4, rtol=1e-4)
                if not gap.all():
                    return f"wrong: {name} at step {step}"
    return ""


def _caches_differ(run: Run, plain: Run, setting: Setting, keys: set[str]) -> str:
    if CACHE not in keys:
        return ""
    one, other = run.output[CACHE], plain.output[CACHE]
    if type(one) is not type(other) or one.get_seq_length() != other.get_seq_length():
        return f"wrong: {one} of {one.get_seq_length()}, {other} of {other.get_seq_length()}"
    # A cache of the user's own is the one that is given back.
    if (one is run.options.get(CACHE)) != (other is plain.options.get(CACHE)):
        return "wrong: another cache is given back"
    mask = run.options.get("attention_mask")
    padding = 0 if mask is None or mask.dim() != 2 else int((mask[0] == 0).sum())
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        for name in ("keys", "values"):
            if getattr(theirs, name, None) is None or "rows" in setting.without:
                continue
            # Entries of padding are masked; their values do not matter.
            pair = [getattr(layer, name)[:, :, padding:] for layer in (mine, theirs)]
            if pair[0].shape != pair[1].shape or not torch.allclose(*pair, atol=1e-4):
                return f"wrong: the cache's {name}"
    return ""


def _lawless(run: Run, plain: Run) -> str:
    """Sampled: the same shapes, and each token has a place in its row (laws: other tests)."""
    rows, steps = len(run.sequences), len(run.output.scores)
    width = run.sequences.shape[1] - steps
    if rows != len(plain.sequences) or not 1 <= steps <= 12:
        return f"wrong: {run.sequences.shape}, {plain.sequences.shape}"
    if not run.sequences[:, :width].equal(plain.sequences[:, :width]):
        return "wrong: the prompt"
    for step, scores in enumerate(run.output.scores):
        tokens = run.sequences[:, width + step]
        going = (run.sequences[:, width + step :] != 0).any(1)
        if not scores.gather(1, tokens[:, None])[going].isfinite().all():
            return f"wrong: a token that its row does not have, step {step}"
    return ""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_a_setting_is_honoured_or_refused_by_its_name(case: str, way: str, shared: Context) -> None:
    setting = CASES[case]
    said = setting.in_one if way == "generate" and setting.in_one else setting.said
    if said == "another loop":
        pytest.skip("transformers runs a loop of its own instead of custom code")
    is_compiled = isinstance(setting.model, str) and setting.model.startswith("compiled")
    # Which of the compiled modules run is tried in tests/unit/caches/test_compiled.py.
    with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
        is_run = any(word in said.split("|") for word in WORDS)
        found = verdict_on(setting, context_of(setting, shared), way, is_run=is_run)
    if found in WORDS or said in WORDS:
        assert found in said.split("|")
    else:
        assert re.search(said, found), found
        assert not found.startswith(("wrong", "crash"))


def test_every_name_of_the_library_is_among_the_settings(shared: Context) -> None:
    """A name that a new version brings fails here until it is listed, or known to be no setting."""
    listed: set[str] = set()
    for setting in CASES.values():
        options = setting.made(shared)
        listed |= {*options}
        if isinstance(config := options.get("generation_config"), GenerationConfig):
            listed |= {name for name, value in vars(config).items() if value is not None}
    every_run = {"max_new_tokens", "pad_token_id", "do_sample", "attention_mask"}
    names = {name for name in NAMES if not name.startswith("_")}
    assert names - listed - every_run == NO_SETTINGS & names


def test_there_are_enough_settings_and_no_two_of_one_name() -> None:
    assert len(CASES) == sum(map(len, GROUPS.values())) >= 200


def test_the_page_has_what_the_tests_expect() -> None:
    assert PAGE.read_text() == page()
