"""transformers' own assisted decoding, with our rule instead of its accept function.

`generate(assistant_model=...)`, `generate(use_mtp=True)` and the library's other drafters that hand
over rows end in one function, `transformers.generation.utils._speculative_sampling`. It is looked
up by name at each step, so that replacing the name replaces the rule; nothing else of the loop
changes. The library's function differs from ours: it accepts `r <= p / q`, so that r = 0 accepts
a token of target probability 0; it divides by zero where the residual is empty; and it knows only
the token rule.

The assistant of Gemma 4 drafts the most likely token but hands over its raw logits as if it had
sampled from them, which biases the output under any rule. Its rows are replaced by the
law of its drafts: all probability on the drafted token.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.generation import candidate_generator, utils

from mtp_verify import _core
from mtp_verify._core import Draft, TokenTree
from mtp_verify.decoder.generation import Stats
from mtp_verify.errors import ParamsError
from mtp_verify.integrations.gate import ENGINES
from mtp_verify.verifier.api import verify
from mtp_verify.verifier.kernels import to_host
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mtp_verify.verifier.words import Rule

__all__ = ["patch"]

_GATE = ENGINES["transformers"]
_NAME = _GATE.function
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
    and drafts without rows, such as prompt lookup, do not call this function, and are exact). All
    noise of a step is one draw of torch's global generator, so that `torch.manual_seed` reproduces
    a run. The library is restored on exit, after errors too; blocks may be nested, and the
    innermost rule counts. The whole process is affected.

    Args:
        rule: As `mv.verify`; it must be legal for a sampled chain. "auto" is block verification,
            which accepts at least as many tokens as the library's rule.

    Yields:
        Figures of the steps that came through, before the library cuts at EOS and maximum length.

    Raises:
        UnsupportedModelError: Another version of transformers than those known, or one that was
            changed; the library is untouched.
        RuleError: No such rule, or not lossless for a sampled chain; the library is untouched.
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
    _core.check_rule(rule, ("chain",), _AS_GIVEN._core, None)
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
    sampling = getattr(utils, _NAME, None)
    _GATE.check(str(transformers.__version__), {_GATE.function: sampling})
    generator = getattr(candidate_generator, _ARGMAX_DRAFTER, None)
    candidates = getattr(generator, "get_candidates", None)
    if changed := _changes(sampling, candidates):
        _GATE.refuse(f"{transformers.__version__} is not as released: {changed}")
    for owner, name, original, ours in (
        (utils, _NAME, sampling, _replacing(sampling)),
        (generator, "get_candidates", candidates, _with_true_rows(candidates)),
    ):
        _originals.append((owner, name, original, ours))
        setattr(owner, name, ours)


def _restore() -> None:
    for owner, name, original, ours in _originals:
        # A replacement by other code on top of ours stays; ours then calls the library's.
        if getattr(owner, name) is ours:
            setattr(owner, name, original)
    _originals.clear()


def _changes(sampling: Any, candidates: Any) -> str:
    """Say what is not as in the releases that were read; empty if all is."""
    if sampling.__module__ != utils.__name__:
        return f"{_NAME} was already replaced by {sampling.__module__}"
    loop = inspect.unwrap(utils.GenerationMixin._assisted_decoding)
    if _NAME not in loop.__code__.co_names:
        return f"its decoding loop does not call {_NAME}"
    names = getattr(getattr(candidates, "__code__", None), "co_names", ())
    if "argmax" not in names or "multinomial" in names:
        return f"{_ARGMAX_DRAFTER} does not draft the most likely tokens"
    return ""


def _replacing(original: Any) -> Callable[..., Any]:
    """Make the accept function that takes the library's arguments and runs the active rule."""

    @functools.wraps(original)
    def accept(
        candidate_input_ids: torch.Tensor,
        candidate_logits: torch.Tensor,
        candidate_length: int,
        new_logits: torch.Tensor,
        assistant_ensemble_weight: float | None = None,
    ) -> Any:
        given = candidate_input_ids, candidate_logits, candidate_length, new_logits
        if not _active:
            return original(*given, assistant_ensemble_weight)
        if assistant_ensemble_weight is not None:
            message = (
                f"assistant_ensemble_weight: found {assistant_ensemble_weight}, wanted None: it "
                "changes the target's distribution, and mv.hf.patch is exact"
            )
            raise ParamsError(message, slug="unsupported_setting")
        return _accept(_active[-1], *given)

    return accept


def _accept(
    active: _Active, ids: torch.Tensor, draft_rows: torch.Tensor, num: int, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Verify one sampled chain; return what is emitted (1, n + 1), and n.

    `ids` (1, L + num) end with the draft; `draft_rows` (1, num, V) are the drafter's logits as it
    sampled from them, and `rows` (1, num + 1, V) the target's processed ones.
    """
    root = ids.shape[1] - num - 1
    rows_of_draft = {"logits": to_host(draft_rows[0]), "params": _AS_GIVEN}
    draft = Draft(TokenTree(range(-1, num)), ids[0, root:].tolist(), law="chain", **rows_of_draft)
    seed = int(torch.randint(1 << 62, ()))
    verdict = verify(draft, rows[0], rule=active.rule, seed=seed, position=root)
    active.stats.record(num, num, verdict.num_accepted, verdict.num_accepted + 1)
    tokens = torch.from_numpy(verdict.tokens).to(ids.device)
    return tokens[None], torch.tensor(verdict.num_accepted, device=ids.device)


def _with_true_rows(original: Any) -> Callable[..., Any]:
    """Make `get_candidates` of a drafter without noise hand over the law of its drafts."""

    @functools.wraps(original)
    def get_candidates(*args: Any, **kwargs: Any) -> Any:
        ids, logits = original(*args, **kwargs)
        if logits is None or not _active:
            return ids, logits
        drafted = ids[:, -logits.shape[1] :, None].to(logits.device)
        return ids, torch.full_like(logits, -torch.inf).scatter_(-1, drafted, 0.0)

    return get_candidates
