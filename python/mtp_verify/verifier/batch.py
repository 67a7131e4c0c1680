"""Many sequences in one call: `verify_batch`, and the threads that it may use."""

from collections.abc import Iterable, Sequence
from typing import Any

from mtp_verify import _core
from mtp_verify._core import Draft, DraftBatch, Lossy, VerdictBatch
from mtp_verify.errors import MtpVerifyError, ParamsError
from mtp_verify.verifier import kernels
from mtp_verify.verifier.api import step_edits
from mtp_verify.verifier.intake import as_list, as_words, check_type
from mtp_verify.verifier.params import SamplingParams, as_params
from mtp_verify.verifier.processors import Processor
from mtp_verify.verifier.words import Rule

__all__ = ["set_num_threads", "verify_batch"]


def verify_batch(
    drafts: DraftBatch | Sequence[Draft],
    logits: Any,
    params: SamplingParams | Sequence[SamplingParams | None] | None = None,
    *,
    rule: Rule | Sequence[Rule] = "auto",
    seeds: Any,
    positions: Any,
    lossy: Lossy | Sequence[Lossy | None] | None = None,
    histories: Sequence[Sequence[int] | None] | None = None,
    prompt_lens: Sequence[int] | None = None,
    bitmasks: Sequence[Any] | None = None,
    processors: Sequence[Processor] | Sequence[Sequence[Processor]] = (),
    top_logprobs: int | Sequence[int] = 0,
) -> VerdictBatch:
    """Verify the drafts of many sequences, on several threads; otherwise as `verify`.

    The verdict of a sequence is the one that `verify` gives for it alone, bit for bit: it depends
    on no other sequence, on no order and on no number of threads. If one sequence has an error
    there are no verdicts at all.

    Args:
        drafts: B drafts, each of its own law and shape, or a `DraftBatch`.
        logits: (sum(N_b + 1), V), the rows of all nodes one after the other; or (B, M, V) with
            M >= each N_b + 1, where what lies behind a draft is not read; or a list of B matrices
            (N_b + 1, V). Dtypes and memory as for ``verify``.
        params: How rows are shaped: one for all, or a list of one for each sequence.
        rule: One for all, or a list of one for each sequence.
        seeds: (B,) integers, each sequence's own, 0 <= seed < 2**64. Equal seeds at equal positions
            are a bias: ``derive_seed(seed, b)`` gives each its own.
        positions: (B,) integers, the index of each root among its sequence's own tokens.
        lossy: One for all, or a list of one (or None) for each sequence.
        histories: One (or None) for each sequence, as ``history`` of ``verify``.
        prompt_lens: One for each sequence; None means 0.
        bitmasks: One (or None) for each sequence, int32 (N_b + 1, ceil(V/32)).
        processors: As for ``verify``: a list for all sequences, or a list of one list for each.
            They are called from the threads that verify; those that keep state of a sequence must
            be its own.
        top_logprobs: How many of the most likely tokens ``[b].top_logprobs`` lists behind each
            emitted one; one number for all, or one for each sequence.

    Returns:
        The verdicts in packed arrays; ``[b]`` is the `Verdict` of sequence b.

    Raises:
        DraftError, RuleError, NumericsError, ParamsError: As ``verify``, with the first sequence
            (by its place in the batch) that is wrong as ``sequence``; or arguments of different
            lengths. What a processor raises comes out as it is, with that attribute.

    Example:
        >>> import numpy as np
        >>> drafts = DraftBatch.chains([[2, 0], [1, -1]], lengths=[2, 1])
        >>> logits = 9 * np.eye(3, dtype=np.float32)[[2, 0, 1, 0, 2]]
        >>> greedy = SamplingParams(temperature=0)
        >>> verdicts = verify_batch(drafts, logits, greedy, seeds=[0, 1], positions=[4, 7])
        >>> verdicts.tokens, verdicts.offsets, verdicts[1].num_accepted
        (array([2, 0, 1, 0]), array([0, 3, 4]), 0)
    """
    items = drafts if isinstance(drafts, DraftBatch) else as_list("drafts", drafts)
    for sequence, draft in enumerate(items if isinstance(items, list) else ()):
        check_type(f"drafts[{sequence}]", draft, Draft)
    rules = rule if isinstance(rule, str) else as_list("rule", rule)
    for sequence, name in enumerate(() if isinstance(rules, str) else rules):
        check_type(f"rule[{sequence}]", name, str)
    listed = _core_params(params)
    places = as_words("positions", positions)
    edits = _edits(items, logits, listed, places, histories, prompt_lens, bitmasks, processors)
    counts = top_logprobs
    return kernels.select(logits).verify_batch(
        items,
        logits,
        listed,
        rules,
        seeds=as_words("seeds", seeds),
        positions=places,
        lossy=_each_lossy(lossy),
        edits=edits,
        top_logprobs=as_list("top_logprobs", counts) if isinstance(counts, Iterable) else counts,
    )


def set_num_threads(n: int) -> None:
    """Set how many threads `verify_batch` uses, the calling one included.

    Results do not depend on it. By default there is one for each core that the process may use;
    small batches use fewer. ``verify`` itself has one.

    Args:
        n: 1 to 1024.

    Raises:
        ParamsError: ``n`` is out of range.

    Example:
        >>> set_num_threads(2)
    """
    _core.set_num_threads(n)


def _core_params(
    params: SamplingParams | Sequence[SamplingParams | None] | None,
) -> _core.CoreParams | list[_core.CoreParams]:
    if not isinstance(params, Sequence):
        return as_params(params)._core
    listed = []
    for sequence, own in enumerate(params):
        try:
            listed.append(as_params(own)._core)
        except MtpVerifyError as error:
            raise error.in_sequence(sequence) from None
    return listed


def _edits(
    drafts: DraftBatch | list[Draft],
    logits: Any,
    params: _core.CoreParams | list[_core.CoreParams],
    positions: list[int],
    histories: Sequence[Sequence[int] | None] | None,
    prompt_lens: Sequence[int] | None,
    bitmasks: Sequence[Any] | None,
    processors: Sequence[Processor] | Sequence[Sequence[Processor]],
) -> list[kernels.Edits | None]:
    """Return what changes the rows of each sequence; an empty list if nothing does."""
    count = len(drafts)
    functions = as_list("processors", processors)
    is_listed = any(isinstance(item, (list, tuple)) for item in functions)
    given = {
        "histories": histories,
        "prompt_lens": prompt_lens,
        "bitmasks": bitmasks,
        "processors": functions if is_listed else [functions] * count,
    }
    each: dict[str, list[Any]] = {}
    for name, items in given.items():
        values = each[name] = [None] * count if items is None else as_list(name, items)
        if len(values) != count:
            message = f"{name}: found {len(values)} entries, wanted {count}, one for each draft"
            raise ParamsError(message, slug="param_out_of_range")
    listed = [params] if isinstance(params, _core.CoreParams) else params
    is_plain = not (
        any(shaping.changes_logits for shaping in listed)
        or any(each["processors"])
        or any(item is not None for name in ("histories", "bitmasks") for item in each[name])
    )
    if is_plain:
        return []
    like = logits[0] if count and isinstance(logits, (list, tuple)) else logits
    edits: list[kernels.Edits | None] = []
    for sequence in range(count):
        try:
            edits.append(
                step_edits(
                    drafts[sequence],
                    like,
                    each["histories"][sequence],
                    0 if prompt_lens is None else each["prompt_lens"][sequence],
                    each["bitmasks"][sequence],
                    each["processors"][sequence],
                    positions[sequence] if sequence < len(positions) else None,
                )
            )
        except MtpVerifyError as error:
            raise error.in_sequence(sequence) from None
    return edits


def _each_lossy(
    lossy: Lossy | Sequence[Lossy | None] | None,
) -> Lossy | list[Lossy | None] | None:
    if lossy is None or isinstance(lossy, Lossy):
        return lossy
    listed = as_list("lossy", lossy)
    for sequence, own in enumerate(listed):
        if own is not None:
            check_type(f"lossy[{sequence}]", own, Lossy)
    return listed
