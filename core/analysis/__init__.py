"""Channel analysis and cost profiles: what is coupled, what it costs, and what must stay."""

from core.analysis.channels import ChannelAnalysis, Frozen, Group, LayerWidth, WeightSlices, analyse
from core.analysis.profiling import LayerCost, Profile, profile

__all__ = [
    "ChannelAnalysis",
    "Frozen",
    "Group",
    "LayerCost",
    "LayerWidth",
    "Profile",
    "WeightSlices",
    "analyse",
    "profile",
]
