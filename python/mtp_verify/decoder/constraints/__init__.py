"""Constraints: what the output must obey token by token, kept along every path of a draft.

`XGrammar` and `LLGuidance` compile JSON schemas, regular expressions and grammars with the library
of that name. `Constraint` and `Matcher` are what a constraint of your own implements.
"""

from __future__ import annotations

from mtp_verify.decoder.constraints.base import Constraint, Matcher
from mtp_verify.decoder.constraints.with_llguidance import LLGuidance
from mtp_verify.decoder.constraints.with_xgrammar import XGrammar

__all__ = ["Constraint", "LLGuidance", "Matcher", "XGrammar"]
