"""How wide a step should be: measured costs of a forward against what drafts have earned so far."""

from mtp_verify.decoder.planning.costs import Costs, MeasuredCosts
from mtp_verify.decoder.planning.planner import Plan, Planner

__all__ = ["Costs", "MeasuredCosts", "Plan", "Planner"]
