"""transformers' own ways to generate, as samplers."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.testing.laws import ENDED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from mtp_verify.certification.settings import Setting
    from mtp_verify.verifier.params import SamplingParams

    Sample = Callable[[Sequence[int], int, int], NDArray[np.int64]]

__all__ = ["as_assistant", "generate_loop", "left_padded"]


def generate_loop(
    model: Any,
    params: SamplingParams,
    setting: Setting,
    options: dict[str, Any],
    *,
    batch: int | None = None,
) -> Sample:
    """Return a sampler that calls `generate` of a target, with further `options`.

    Among these `mtp_layers` are layers for `use_mtp`. A call draws `batch` strings; None draws all
    in one. If there are several, a longer prompt is added, so that they are padded on the left.
    """
    import torch

    settings: dict[str, Any] = {"max_new_tokens": setting.num, "do_sample": not params.is_greedy}
    settings |= {"eos_token_id": setting.eos, "pad_token_id": 0, **options}
    follow = setting.allowed(model.config.get_text_config().vocab_size)
    is_ours = "custom_generate" in options
    if not params.is_greedy:
        # All four, as generate's own defaults are not "off".
        settings |= {"temperature": params.temperature, "top_k": params.top_k}
        settings |= {"top_p": params.top_p, "min_p": params.min_p or None}
    # They need the history, and change the greedy token too.
    if params.repetition_penalty != 1:
        settings["repetition_penalty"] = params.repetition_penalty
    if params.no_repeat_ngram_size:
        settings["no_repeat_ngram_size"] = params.no_repeat_ngram_size
    layers = settings.pop("mtp_layers", None)

    def sample(prompt: Sequence[int], n: int, seed: int) -> NDArray[np.int64]:
        rows = left_padded(prompt, batch or n, is_accompanied=batch is not None and batch > 1)
        # The mask is given: generate would take token 0 of a prompt for padding.
        ids, mask = (torch.from_numpy(array) for array in rows)
        width = ids.shape[1]
        if follow is not None and not is_ours:
            settings["prefix_allowed_tokens_fn"] = lambda _, text: np.flatnonzero(
                follow(tuple(text[width:].tolist()))
            ).tolist()
        found: list[NDArray[np.int64]] = []
        with (
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(),
            _quiet(),
            _with_mtp_layers(layers),
        ):
            torch.manual_seed(seed)
            for _ in range(0, n, batch or n):
                out = model.generate(ids, attention_mask=mask, **settings)
                found.append(_ended(out[: batch or n, width:].numpy(), setting))
        return np.concatenate(found)[:n]

    return sample


def _ended(strings: NDArray[np.int64], setting: Setting) -> NDArray[np.int64]:
    """Write `ENDED` over the padding behind a stop token; other tokens stay, to be found."""
    missing = setting.num - strings.shape[1]
    found = np.pad(strings, ((0, 0), (0, missing)), constant_values=0)
    if setting.eos is not None:
        has_stopped = np.cumsum(found == setting.eos, axis=1) - (found == setting.eos) > 0
        found = np.where(has_stopped & (found == 0), ENDED, found)
    return np.asarray(found, np.int64)


def left_padded(
    prompt: Sequence[int], count: int, *, is_accompanied: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return tokens and mask of a prompt's copies, with a longer one below them if wanted."""
    prompts = [list(prompt)] * count
    if is_accompanied:
        prompts.append([*prompt, *prompt[:2]])
    width = max(map(len, prompts))
    ids = np.array([[0] * (width - len(row)) + row for row in prompts])
    mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    return ids, mask


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turn off transformers' notices, which every one of thousands of calls repeats."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _with_mtp_layers(layers: Any | None) -> Iterator[None]:
    """Let transformers find a target's MTP layers in memory; see `families.mtp`."""
    if layers is None:
        yield
        return
    from unittest import mock

    from transformers.modeling_layers import MtpModel

    with mock.patch.object(MtpModel, "from_pretrained", return_value=layers):
        yield


def as_assistant(model: Any, num_drafts: int) -> Any:
    """Fix the size of drafts, without a confidence stop: all samples then have like steps."""
    config = model.generation_config
    config.num_assistant_tokens = num_drafts
    config.num_assistant_tokens_schedule = "constant"
    config.assistant_confidence_threshold = 0.0
    return model
