"""Surgery: build the smaller network, and prove it against the masked original."""

from core.surgery.equivalence import TOLERANCE, Equivalence, verify
from core.surgery.slicing import apply, slice_tensors

__all__ = ["TOLERANCE", "Equivalence", "apply", "slice_tensors", "verify"]
