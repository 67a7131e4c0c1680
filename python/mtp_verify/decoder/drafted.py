"""What a drafter has drafted, before the target runs it: what is of no use is left out, or refused.

A bad drafter costs speed and nothing else. Where its rows are no distributions, as those of a head
with a damaged weight, nothing was drawn that a rule could be lossless for: the draft ends above the
first level below such a row. That this depends on rows and on tokens above, and never on a token
that was drawn from them, keeps the law (docs/explanation/lossless-loops.md, which names one gap).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtp_verify._core import Draft, TokenTree
from mtp_verify.decoder.constraints.base import without
from mtp_verify.drafters.base import warn_once
from mtp_verify.errors import DraftError, UnsupportedModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mtp_verify.decoder.sequences import Sequence
    from mtp_verify.models.target import Target

__all__ = ["WITHOUT_ROWS", "check_draft", "clean_draft", "cleaned"]

# Laws whose rules hold no token against a drafter's row.
WITHOUT_ROWS = ("deterministic", "coupled", "unknown")
_SUM_TOLERANCE = 1e-2  # Of probabilities, as the core has it.


def clean_draft(sequence: Sequence, target: Target) -> None:
    """Leave out of a sequence's draft what no rule can hold against the target's rows; warn once.

    Of drafts on a device only the form is known: they are grown so that nothing has to be left out.
    """
    drafter = sequence.options.drafter
    if drafter is None or sequence.sketch is not None or sequence.draft.num_nodes < 2:
        return
    draft, found = cleaned(sequence.draft, target.vocab_size, checks_rows=drafter.checks_rows)
    if found:
        warn_once(drafter, found)
        sequence.take(draft)


def cleaned(
    draft: Draft, vocab_size: int | None, *, checks_rows: bool = False
) -> tuple[Draft, str]:
    """Return a draft without what it should not hold, and what that was; "" if there was nothing.

    Args:
        draft: with one drafted node at least.
        vocab_size: V of the target, if it is known.
        checks_rows: nothing was drawn from a row that is no distribution; they are not looked at.
    """
    # What a draft is made of: what it is pickled as.
    tree, tokens, law, probs, rows, logits, params, vocab, sampled = draft.__reduce__()[1]
    if law in WITHOUT_ROWS or (probs is None and logits is None):
        if vocab_size is None or int(draft.tokens.max()) < vocab_size:
            return draft, ""
        node = 1 + int(draft.tokens[1:].argmax())
        found = f"found token {tokens[node]} at node {node}, outside the target's {vocab_size}"
        return without(draft, _with_those_below(tree, draft.tokens >= vocab_size)), found
    given = probs if logits is None else logits
    last = given.shape[1] - 1 if vocab is None else max(vocab)
    if vocab_size is not None and last >= vocab_size:
        # Which tokens were drawn must not decide: all that it drew from are too many.
        return _empty(tokens[0]), f"found rows over token {last}, outside the target's {vocab_size}"
    if checks_rows:
        return draft, ""
    is_bad = _are_bad(given, is_logits=logits is not None)
    parents, depths = tree.parents, tree.depths
    bad = [node for node in np.unique(parents[1:]) if rows[node] >= 0 and is_bad[rows[node]]]
    if not bad:
        return draft, ""
    found = f"found a row at node {bad[0]} that is no distribution"
    # Whole levels, as growers stop: paths of one length stay so.
    kept = np.flatnonzero(depths <= depths[bad].min())
    if len(kept) == 1:
        return _empty(tokens[0]), found
    numbers = np.cumsum(depths <= depths[bad].min()) - 1
    above = parents[kept[1:]]
    own: dict[str, Any] = {"probs": probs, "logits": logits, "params": params, "vocab": vocab}
    own["rows"] = [rows[node] if node in above else -1 for node in kept]
    if sampled is not None:
        own["sampled"] = [sampled[node] for node in kept]
    smaller = TokenTree([-1, *numbers[above].tolist()])
    return Draft(smaller, [tokens[node] for node in kept], law=law, **own), found


def _empty(root: int) -> Draft:
    return Draft(TokenTree([-1]), [root])


def _with_those_below(tree: TokenTree, is_gone: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark what hangs below marked nodes too."""
    found = is_gone.copy()
    for node, parent in enumerate(tree.parents[1:].tolist(), 1):
        found[node] |= found[parent]
    return found


def _are_bad(rows: Any, *, is_logits: bool) -> NDArray[np.bool_]:
    """Return for each row (n, columns) whether it is no distribution."""
    given = torch.as_tensor(rows)
    if is_logits:
        sound = given.amax(1).isfinite()
    else:
        sums = given.double().sum(1)
        sound = (given.amin(1) >= 0) & ((sums - 1).abs() <= _SUM_TOLERANCE)
    bad: NDArray[np.bool_] = (~sound).numpy()
    return bad


def check_draft(sequence: Sequence, target: Target) -> None:
    """Refuse what a drafter was not asked for, or what the target could not be run on.

    Raises:
        DraftError: more nodes than the budget, or an undeclared law.
        UnsupportedModelError: a tree, and the target cannot attend along one.
    """
    draft, options, number = sequence.draft, sequence.options, sequence.request.id
    num_drafted, budget = draft.num_nodes - 1, sequence.plan.budget
    if not num_drafted:
        return
    name = type(options.drafter).__name__
    if num_drafted > budget:
        message = (
            f"{name}.propose: found {num_drafted} nodes, wanted {budget} at most; a draft is kept "
            "within its budget before it is drawn, since one that is dropped for its size would "
            "bias what is emitted"
        )
        raise DraftError(message, slug="draft_too_large", sequence=number)
    if not draft.tree.is_chain and target.tree_obstacle:
        message = f"the draft is a tree, and {target.tree_obstacle}"
        raise UnsupportedModelError(message, slug="no_tree_attention")
    if draft.law == "coupled" and options.rule == "auto" and options.lossy is None:
        message = (
            f'{name}.propose: found a draft of the law "coupled", which `laws` does not name; '
            'a request with such drafts is verified by rule="coupled" at every step'
        )
        raise DraftError(message, slug="undeclared_law", sequence=number)
