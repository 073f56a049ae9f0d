"""Networks out of `.pt2` files, the archives of `torch.export.save`: only their JSON and raw tensors are read."""

from core.intake.pt2.archive import holds_program
from core.intake.pt2.importing import read_pt2

__all__ = ["holds_program", "read_pt2"]
