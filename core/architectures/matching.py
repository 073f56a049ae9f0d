"""Compares a state_dict with the names and shapes that a module expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

LISTED = 10


@dataclass(frozen=True)
class Difference:
    """One tensor that is there with another shape, or as integers where floats belong."""

    name: str
    expected: tuple[int, ...]
    found: tuple[int, ...]
    found_dtype: str | None = None

    def __str__(self) -> str:
        found = f"{list(self.found)}" + (f" of {self.found_dtype}" if self.found_dtype else "")
        return f"{self.name} (expected {list(self.expected)}, found {found})"


@dataclass(frozen=True)
class Mismatch:
    """What keeps a state_dict from fitting; false when it fits."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    different: tuple[Difference, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.different)

    def __str__(self) -> str:
        parts = (
            _listing("missing", self.missing),
            _listing("unexpected", self.unexpected),
            _listing("different shapes", [str(difference) for difference in self.different]),
        )
        return "; ".join(part for part in parts if part)

    def as_dict(self) -> dict[str, Any]:
        """Counts and the first ten of each, JSON-serialisable."""
        return {
            "missing": {"count": len(self.missing), "first": list(self.missing[:LISTED])},
            "unexpected": {"count": len(self.unexpected), "first": list(self.unexpected[:LISTED])},
            "different": {
                "count": len(self.different),
                "first": [
                    {"name": item.name, "expected": list(item.expected), "found": list(item.found)}
                    for item in self.different[:LISTED]
                ],
            },
        }


def compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Mismatch:
    """Batch-norm's `num_batches_tracked` may be absent: PyTorch before 0.4.1 had none, and inference ignores it."""
    missing = [name for name in expected if name not in found and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in found if name not in expected]
    different = []
    for name, tensor in expected.items():
        if name not in found:
            continue
        other = found[name]
        integers = tensor.is_floating_point() and not other.is_floating_point()
        if tensor.shape != other.shape or integers:
            dtype = str(other.dtype).removeprefix("torch.") if integers else None
            different.append(Difference(name, tuple(tensor.shape), tuple(other.shape), dtype))
    return Mismatch(tuple(missing), tuple(unexpected), tuple(different))


def _listing(title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    rest = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return f"{len(items)} {title}: {', '.join(items[:LISTED])}{rest}"
