"""Planning: from scores and caps to the channels that stay."""

from core.planning.options import LayerLimits, PlanOptions
from core.planning.plan import Plan, PlannedLayer
from core.planning.planner import plan_widths, smallest_plan
from core.planning.size import SizeTable, safetensors_bytes

__all__ = [
    "LayerLimits",
    "Plan",
    "PlanOptions",
    "PlannedLayer",
    "SizeTable",
    "plan_widths",
    "safetensors_bytes",
    "smallest_plan",
]
