"""What every dataset reader yields: consecutive examples of one source, checked, in one layout.

A reader turns a stored file into a stream of chunks; the profile and the loaded dataset are both folds over that stream,
so that inspecting a large upload needs the memory of one chunk.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np

from core.errors import EngineError
from core.recovery.limits import decoded_limit_bytes

SPLIT_NAMES: tuple[str, ...] = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
_SPLIT_CODES = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "dev": VAL,
    "test": TEST,
    "testing": TEST,
}

CHUNK_BYTES = 16 * 2**20
MAX_LABEL = 1_000_000


@dataclass(frozen=True)
class Chunk:
    """Consecutive examples.

    images: [n, C, H, W], uint8 or float32. labels: [n] int64, or None where the source has none.
    splits: [n] int8 codes (TRAIN, VAL, TEST); a source that names no splits is all TRAIN. class_names: by label, or None
    where the source does not say them.
    """

    images: np.ndarray
    labels: np.ndarray | None
    splits: np.ndarray
    class_names: tuple[str, ...] | None = None


class Allowance:
    """The bytes that one dataset may take up once decoded; asked before anything is allocated."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._limit_bytes = decoded_limit_bytes() if limit_bytes is None else limit_bytes
        self._taken_bytes = 0

    def take(self, size_bytes: int, source: str) -> None:
        self._taken_bytes += size_bytes
        if self._taken_bytes > self._limit_bytes:
            raise invalid_dataset(
                f"{source}: the decoded dataset is larger than the limit of {self._limit_bytes:,} bytes "
                f"({self._taken_bytes:,} so far), which is what this worker has room for. Use fewer or smaller images "
                '(convert {"size": [height, width]} makes encoded ones smaller), or a worker with more disk.'
            )


def invalid_dataset(message: str) -> EngineError:
    """The error of everything that is wrong with a dataset; the message names file, row and reason."""
    return EngineError("dataset_invalid", message, param="/dataset")


def checked_labels(values: np.ndarray, source: str, first_row: int = 0) -> np.ndarray:
    """Stored labels ([n] or [n, 1]; integers, booleans or whole floats) as int64.

    Raises EngineError("dataset_invalid") naming the row of a negative, fractional or absurdly large label.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise invalid_dataset(
            f"{source}: labels have shape {list(values.shape)}; one integer per image is needed "
            "(for one-hot labels, store their argmax)."
        )
    require_label_type(values.dtype, source)
    wrong = np.zeros(len(values), bool)
    if values.dtype.kind == "f":
        wrong |= ~(np.floor(values) == values)
    wrong |= ~((values >= 0) & (values <= MAX_LABEL))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise invalid_dataset(
            f"{source}, row {first_row + row}: label {values[row]} is not a class index; labels are whole numbers from 0 "
            "(a label of -1 usually marks an unlabelled split: leave that split out)."
        )
    return values.astype(np.int64)


def require_label_type(dtype: np.dtype, source: str) -> None:
    """Raise EngineError("dataset_invalid") for labels that are no numbers."""
    if dtype.kind not in "biuf":
        raise invalid_dataset(f"{source}: labels are of type {dtype}; integers from 0 are needed.")


def split_code(name: object, source: str, row: int) -> int:
    """The code of a split's name as users write it. Raises EngineError naming the row."""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    code = find_split_code(text)
    if code is None:
        raise invalid_dataset(
            f"{source}, row {row}: split {text[:40]!r} is unknown; use train, val (or validation) and test."
        )
    return code


def holds_controls(name: str) -> bool:
    """Whether a name has control characters, or bytes that are no text: neither has a place in a message or in JSON."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


def find_split_code(name: str) -> int | None:
    """The code of a split's name as users write it; None for any other word."""
    return _SPLIT_CODES.get(name.strip().lower())


def joined_labels(
    parts: list[np.ndarray | None], class_names: tuple[str, ...] | None
) -> tuple[np.ndarray | None, int | None]:
    """All labels and the number of classes: how many have names, or else the largest label + 1. (None, None) without any.

    Raises EngineError("dataset_invalid") where there is only one class.
    """
    if parts[0] is None:
        return None, None
    labels = np.concatenate(parts)
    if (labels == labels[0]).all():
        name = f" ({class_names[labels[0]][:80]!r})" if class_names else ""
        raise invalid_dataset(f"Every label is {labels[0]}{name}; at least two classes are needed.")
    return labels, len(class_names) if class_names else int(labels.max()) + 1
