"""transformers' own assisted decoding, with our rule in the place of its accept function.

`generate(assistant_model=...)`, `generate(use_mtp=True)` and the library's other drafters that hand
over rows end in one function, `transformers.generation.utils._speculative_sampling`. It is looked
up by name at each step, so that replacing the name replaces the rule; nothing else of the loop
changes. What the library's function does otherwise: it accepts `r <= p / q`, so that r = 0 accepts
a token of target probability 0; it divides by zero where the residual is empty; and it knows only
the token rule.

The assistant of Gemma 4 drafts the most likely token but hands over its raw logits as if it had
sampled from them: a bias of its output law, whichever rule verifies. Its rows are replaced by the
law that its drafts do have: all probability on the drafted token.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from transformers.generation import candidate_generator, utils

from mtp_verify._core import Draft, TokenTree
from mtp_verify.decoder.generation import Stats
from mtp_verify.errors import ParamsError, UnsupportedModelError
from mtp_verify.verifier.api import verify
from mtp_verify.verifier.kernels import to_host
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mtp_verify.verifier.words import Rule

__all__ = ["patch"]

# Minor versions whose source was read: the signatures and the drafters' rows are those below.
_FIRST, _LAST = (5, 18), (5, 24)
_NAME = "_speculative_sampling"
_SIGNATURE = (
    "candidate_input_ids",
    "candidate_logits",
    "candidate_length",
    "new_logits",
    "assistant_ensemble_weight",
)
_ARGMAX_DRAFTER = "SinglePositionMultiTokenCandidateGenerator"

# The rows arrive processed: temperature 1, nothing cut.
_AS_GIVEN = SamplingParams()


class _Active:
    """One entered `patch`."""

    def __init__(self, rule: Rule) -> None:
        self.rule, self.stats = rule, Stats()


# The innermost `patch` is the last; a lock, as threads may enter and leave in any order.
_active: list[_Active] = []
_originals: list[tuple[Any, str, Any, Any]] = []  # owner, name, the library's, ours
_lock = threading.Lock()


@contextlib.contextmanager
def patch(rule: Rule = "auto") -> Iterator[Stats]:
    """Let `generate` of transformers accept drafts by our exact rule, inside a `with` block.

    Callers of `assistant_model=` and `use_mtp=` change nothing else; sampling only (greedy decoding
    and drafts without rows, such as prompt lookup, do not come through this function, and are
    exact as they are). All noise of a step comes from one draw of torch's global generator, so
    that `torch.manual_seed` reproduces a run. The library is put back on exit, whatever happens in
    between; blocks may be nested, and the innermost rule counts. The whole process is affected.

    Args:
        rule: As `mv.verify`; it must be legal for a sampled chain. "auto" is block verification,
            which accepts at least as many tokens as the library's rule.

    Yields:
        Figures of the steps that came through, before the library cuts at EOS and maximum length.

    Raises:
        UnsupportedModelError: Another version of transformers than those known, or one that was
            changed; the library is untouched.
        RuleError: No such rule, or not lossless for a sampled chain; likewise.
        ParamsError: (by `generate`) `assistant_ensemble_weight`, which is lossy by design.
        DraftError: (by `generate`) a drafted token that its own row gives no probability.

    Example:
        >>> with mv.hf.patch() as stats:  # doctest: +SKIP
        ...     model.generate(**inputs, do_sample=True, assistant_model=assistant)
        >>> stats.tau  # doctest: +SKIP
        2.4

    References:
        arXiv 2211.17192 (the library's rule), 2403.10444 (block verification).
    """
    # Refused here, not in the middle of a generation.
    verify(
        Draft.chain([0], np.ones((1, 1), np.float32)),
        np.zeros((2, 1), np.float32),
        rule=rule,
        seed=0,
        position=0,
    )
    mine = _Active(rule)
    with _lock:
        if not _active:
            _install()
        _active.append(mine)
    try:
        yield mine.stats
    finally:
        with _lock:
            _active.remove(mine)
            if not _active:
                _restore()


def _install() -> None:
    """Check everything, then replace everything."""
    _check_version(str(transformers.__version__))
    sampling = _check_sampling(getattr(utils, _NAME, None))
    generator = getattr(candidate_generator, _ARGMAX_DRAFTER, None)
    candidates = _check_argmax(getattr(generator, "get_candidates", None))
    for owner, name, original, ours in (
        (utils, _NAME, sampling, _replacing(sampling)),
        (generator, "get_candidates", candidates, _with_true_rows(candidates)),
    ):
        _originals.append((owner, name, original, ours))
        setattr(owner, name, ours)


def _restore() -> None:
    for owner, name, original, ours in _originals:
        # Somebody else's replacement on top of ours stays; ours passes on to the library then.
        if getattr(owner, name) is ours:
            setattr(owner, name, original)
    _originals.clear()


def _check_version(version: str) -> None:
    found = re.fullmatch(r"(\d+)\.(\d+)\.\d+", version)
    if found is None or not _FIRST <= (int(found[1]), int(found[2])) <= _LAST:
        msg = (
            f"transformers {version} is not known to mv.hf.patch; it knows "
            f"{_FIRST[0]}.{_FIRST[1]} to {_LAST[0]}.{_LAST[1]}. The library was left as it is; "
            "model.generate(custom_generate=mv.hf.speculative(...)) needs no patch"
        )
        raise UnsupportedModelError(msg, slug="unsupported_version")


def _check_sampling(function: Any) -> Callable[..., Any]:
    if not callable(function) or tuple(inspect.signature(function).parameters) != _SIGNATURE:
        _changed(f"{_NAME} does not take {', '.join(_SIGNATURE)}")
    if getattr(function, "__module__", None) != utils.__name__:
        _changed(f"{_NAME} was already replaced by {function.__module__}")
    loop = inspect.unwrap(utils.GenerationMixin._assisted_decoding)
    if _NAME not in loop.__code__.co_names:
        _changed(f"its decoding loop does not call {_NAME}")
    checked: Callable[..., Any] = function
    return checked


def _check_argmax(function: Any) -> Callable[..., Any]:
    names = getattr(getattr(function, "__code__", None), "co_names", ())
    if "argmax" not in names or "multinomial" in names:
        _changed(f"{_ARGMAX_DRAFTER} does not draft the most likely tokens")
    checked: Callable[..., Any] = function
    return checked


def _changed(what: str) -> None:
    msg = (
        f"transformers {transformers.__version__} is not as released: {what}. It was left as it is"
    )
    raise UnsupportedModelError(msg, slug="unsupported_version")


def _replacing(original: Callable[..., Any]) -> Callable[..., Any]:
    """Make the accept function that takes the library's arguments and runs the active rule."""

    @functools.wraps(original)
    def accept(
        candidate_input_ids: torch.Tensor,
        candidate_logits: torch.Tensor,
        candidate_length: int,
        new_logits: torch.Tensor,
        assistant_ensemble_weight: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not _active:
            found: tuple[torch.Tensor, torch.Tensor] = original(
                candidate_input_ids,
                candidate_logits,
                candidate_length,
                new_logits,
                assistant_ensemble_weight,
            )
            return found
        if assistant_ensemble_weight is not None:
            msg = (
                f"assistant_ensemble_weight: found {assistant_ensemble_weight}, wanted None: it "
                "accepts more than the target's law allows, and mv.hf.patch is exact"
            )
            raise ParamsError(msg, slug="unsupported_setting")
        return _accept(
            _active[-1], candidate_input_ids, candidate_logits, candidate_length, new_logits
        )

    return accept


def _accept(
    active: _Active, ids: torch.Tensor, draft_rows: torch.Tensor, num: int, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Verify one sampled chain.

    Args:
        active: The innermost `patch`.
        ids: (1, L + num) int64, the text and the draft.
        draft_rows: (1, num, V), the drafter's logits as it sampled from them.
        num: Length of the draft.
        rows: (1, num + 1, V) float32, the target's processed logits.

    Returns:
        The emitted tokens (1, n + 1) on the device of `ids`, and n as a tensor without dimensions.
    """
    root = ids.shape[1] - num - 1
    draft = Draft(
        TokenTree(range(-1, num)),
        ids[0, root:].tolist(),
        law="chain",
        logits=to_host(draft_rows[0]),
        params=_AS_GIVEN,
    )
    seed = int(torch.randint(1 << 62, ()))
    verdict = verify(draft, rows[0], rule=active.rule, seed=seed, position=root)
    active.stats.record(num, num, verdict.num_accepted, verdict.num_accepted + 1)
    tokens = torch.from_numpy(verdict.tokens).to(ids.device)
    return tokens[None], torch.tensor(verdict.num_accepted, device=ids.device)


def _with_true_rows(original: Callable[..., Any]) -> Callable[..., Any]:
    """Make `get_candidates` of a drafter without noise hand over the law of its drafts."""

    @functools.wraps(original)
    def get_candidates(*args: Any, **kwargs: Any) -> Any:
        ids, logits = original(*args, **kwargs)
        if logits is None or not _active:
            return ids, logits
        drafted = ids[:, -logits.shape[1] :, None].to(logits.device)
        return ids, torch.full_like(logits, -torch.inf).scatter_(-1, drafted, 0.0)

    return get_candidates
