"""One real service for the module: `pennyweightd serve` in a process of its own, a small trained network, its images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from pennyweight import Client
from safetensors.torch import save_file

from core.architectures import build
from examples.demo import digits, service, train

ARGS = {"depth": 8, "width": 8, "in_channels": 1, "num_classes": 10}


@dataclass(frozen=True)
class Digits:
    """Files that a user would have: a trained checkpoint and the images it was trained on."""

    checkpoint: Path
    dataset: Path
    images: np.ndarray
    labels: np.ndarray
    split: np.ndarray


@pytest.fixture(scope="session")
def digits_files(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    folder = tmp_path_factory.mktemp("digits")
    images, labels, split = digits()
    torch.manual_seed(0)
    save_file(train(images, labels, split, ARGS), folder / "resnet8.safetensors")
    np.savez(folder / "digits.npz", images=images, labels=labels, split=split)
    return Digits(folder / "resnet8.safetensors", folder / "digits.npz", images, labels, split)


@pytest.fixture(scope="session")
def service_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with service(tmp_path_factory.mktemp("service") / "data") as url:
        yield url


@pytest.fixture
def client(service_url: str) -> Iterator[Client]:
    with Client(service_url) as client:
        yield client


@pytest.fixture
def random_checkpoint(tmp_path: Path) -> Path:
    """An untrained network with batch-norm statistics of its own, so that no branch is silent."""
    torch.manual_seed(1)
    model = build("cifar_resnet", ARGS)
    for name, tensor in model.state_dict().items():
        if "running_var" in name or ("bn" in name and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
    path = tmp_path / "random.safetensors"
    save_file(model.state_dict(), path)
    return path
