"""Forty small images of four classes, and a file of them."""

import numpy as np
import pytest


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 12, 10, 3), np.uint8)


@pytest.fixture
def labels():
    return np.arange(40) % 4


@pytest.fixture
def save(tmp_path):
    """Save arrays as an .npz file and give its path."""

    def _save(compressed=False, **arrays):
        path = tmp_path / "data.bin"  # the name says nothing: layouts are recognised by content
        with path.open("wb") as file:
            (np.savez_compressed if compressed else np.savez)(file, **arrays)
        return path

    return _save
