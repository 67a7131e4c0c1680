"""Which rule verifies a request: chosen before its first draw, for all of its steps.

A rule that was chosen after a look at the draft would be biased: a rule is lossless over all drafts
of a law, not on those that it is picked for. And what a `coupled` draft shows is noise that the
rule `coupled` has still to use, so no other rule may take turns with it (docs/lossless-loops.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mtp_verify._core import Draft, TokenTree
from mtp_verify.verifier.api import rules, verify
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from mtp_verify.drafters.base import Drafter
    from mtp_verify.verifier.lossy import Lossy
    from mtp_verify.verifier.words import Law, Rule

__all__ = ["rule_of_request", "rule_of_step"]

# The laws that each rule is legal for.
_LAWS: dict[str, list[Law]] = {rule["name"]: rule["laws"] for rule in rules()}


def rule_of_request(
    rule: Rule, drafter: Drafter | None, params: SamplingParams, lossy: Lossy | None = None
) -> Rule:
    """Return the rule of a request; refuse one that could not verify what is drafted for it.

    That is the rule that was asked for, but "coupled" for "auto" where a draft may have the law
    "coupled": each step is then verified by it, whatever the law of its draft.

    Raises:
        RuleError: no such rule; not lossless for a law that the drafter may hand out, or not at
            this temperature; `lossy` with another rule than "auto", or at temperature 0.
    """
    laws = () if drafter is None else drafter.laws
    if rule == "auto" and lossy is None and "coupled" in laws:
        rule = "coupled"
    bare = SamplingParams(temperature=params.temperature, preset=params.preset)
    for law in laws or _LAWS.get(rule, ["deterministic"])[:1]:
        empty = Draft(TokenTree([-1]), [-1], law=law, sampled=[False] if law == "mixed" else None)
        row = np.array([[0.0, -np.inf]], np.float32)  # Whatever the noise: nothing is drawn.
        verify(empty, row, bare, rule=rule, seed=0, position=0, lossy=lossy)
    return rule


def rule_of_step(rule: Rule, draft: Draft) -> Rule:
    """The request's rule; where nothing was drafted, one that takes an empty draft of any law.

    Whether anything is drafted is known before a draw, so that this is no look at the draft.
    """
    is_empty = draft.num_nodes == 1
    if is_empty and draft.law not in _LAWS.get(rule, [draft.law]):
        return "target_only"
    return rule
