"""Which rule verifies a request: settled before its first draw, for its whole life.

A rule that was chosen after a look at the draft would be biased: a rule is lossless over all drafts
of a law, not on those that it is picked for. And what a `coupled` draft shows is noise that the
rule `coupled` has still to use, so no other rule may take turns with it
(docs/explanation/lossless-loops.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtp_verify import _core
from mtp_verify.drafters.base import laws_of

if TYPE_CHECKING:
    from mtp_verify.drafters.base import Drafter
    from mtp_verify.verifier.lossy import Lossy
    from mtp_verify.verifier.params import SamplingParams
    from mtp_verify.verifier.words import Rule

__all__ = ["settle"]


def settle(
    rule: Rule, drafter: Drafter | None, params: SamplingParams, lossy: Lossy | None = None
) -> Rule:
    """Return the rule of a request; refuse one that could not verify what is drafted for it.

    Args:
        rule: that was asked for.
        drafter: of the request, or None.
        params: of the target's rows.
        lossy: of `mv.lossy`, or None.

    Returns:
        The rule itself, but "coupled" for "auto" where a draft may have the law "coupled": each
        step is then verified by it, whatever the law of its draft.

    Raises:
        RuleError: no such rule; not lossless for a law that the drafter may hand out, or not at
            this temperature; `lossy` with another rule than "auto", or at temperature 0.
    """
    laws = laws_of(drafter)
    if rule == "auto" and lossy is None and "coupled" in laws:
        rule = "coupled"
    _core.check_rule(rule, laws, params._core, lossy)
    return rule
