"""Named architectures that a state_dict can be matched with: one file per family, found by the registry."""

from core.architectures.matching import Difference, Mismatch, compare
from core.architectures.registry import (
    Architecture,
    ArchitectureInfo,
    architecture_infos,
    build,
    fitting_architectures,
    get_architecture,
    mismatch,
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
    "resolve_args",
]
