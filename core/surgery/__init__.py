"""Surgery: build the smaller network, and prove it against the masked original."""

from core.surgery.equivalence import TOLERANCE, Equivalence, verify
from core.surgery.slicing import apply, kept_indices, slice_tensors

__all__ = ["TOLERANCE", "Equivalence", "apply", "kept_indices", "slice_tensors", "verify"]
