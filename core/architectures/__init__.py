"""Named architectures that a state_dict can be matched with: one file per family, found by the registry."""

from core.architectures.family import Architecture
from core.architectures.matching import Difference, Mismatch, compare
from core.architectures.registry import (
    ArchitectureInfo,
    architecture_infos,
    build,
    fitting_architectures,
    get_architecture,
    mismatch,
    nearest_names,
    resolve_args,
)

__all__ = [
    "Architecture",
    "ArchitectureInfo",
    "Difference",
    "Mismatch",
    "architecture_infos",
    "build",
    "compare",
    "fitting_architectures",
    "get_architecture",
    "mismatch",
    "nearest_names",
    "resolve_args",
]
