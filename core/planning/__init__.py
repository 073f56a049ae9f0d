"""Planning: from scores and caps to the channels that stay."""

from core.planning.options import PlanOptions
from core.planning.plan import Plan, PlannedLayer
from core.planning.planner import plan_widths, smallest_plan

__all__ = ["Plan", "PlanOptions", "PlannedLayer", "plan_widths", "smallest_plan"]
