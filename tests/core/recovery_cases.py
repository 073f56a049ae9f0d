"""Small real networks and images for the tests of recovery: a residual CNN trained on scikit-learn's digits; and
processes that die on the way."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from core.analysis import analyse
from core.architectures import build
from core.budget import Budget, Cap
from core.checkpoint import Checkpoint, Saved
from core.intake import save_safetensors
from core.methods import get_method
from core.network import Network
from core.planning import plan_widths
from core.request import CompressionRequest
from core.surgery import apply, kept_indices

# The step after which a `Dying` dies that goes on to the end.
NEVER = -1
ARCHITECTURE = {
    "architecture": "cifar_resnet",
    "architecture_args": {"depth": 8, "width": 8, "in_channels": 1, "num_classes": 10},
    "input_shape": (1, 8, 8),
}


class Killed(BaseException):
    """The process is gone: nothing may catch it."""


class Dying(Checkpoint):
    """Saves at every chance, and dies after the first save, or after that of one step."""

    due = True

    def __init__(self, path: Path, last_step: int | None = None) -> None:
        super().__init__(path, "request")
        self._last_step = last_step

    def save(self, step: str, state: Saved) -> None:
        super().save(step, state)
        if self._last_step in (None, state.values["step"]):
            raise Killed


@cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 images [1797, 8, 8], labels, split names."""
    bundle = load_digits()
    images = np.round(bundle.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    split = np.empty(len(images), dtype="<U5")
    split[order] = np.repeat(["train", "val", "test"], [1257, 180, 360])
    return images, bundle.target, split


def save_digits(folder: Path, **changes: np.ndarray) -> Path:
    images, labels, split = digits()
    path = folder / "digits.npz"
    np.savez(path, **{"x": images, "y": labels, "split": split, **changes})
    return path


def digit_requests(folder: Path) -> Callable[..., CompressionRequest]:
    """(methods, cap, data, **changes) → a request for `trained_network`. data: None, "labelled" or "unlabelled"."""
    save_safetensors(trained_network().tensors, folder / "model.safetensors")
    images, _, split = digits()
    data_paths = {None: None, "labelled": save_digits(folder), "unlabelled": folder / "unlabelled.npz"}
    np.savez(data_paths["unlabelled"], x=images, split=split)

    def request(methods: tuple[dict, ...], cap: Cap, data: str | None = None, **changes: object) -> CompressionRequest:
        return CompressionRequest(
            folder / "model.safetensors",
            **{
                "budget": Budget((cap,)),
                **ARCHITECTURE,
                "methods": methods,
                "dataset_path": data_paths[data],
                "outputs": ("safetensors", "report"),
                **changes,
            },
        )

    return request


@cache
def trained_network() -> Network:
    """A `cifar_resnet` of depth 8 that knows the digits, after about two seconds of training."""
    return taught(lambda: build(ARCHITECTURE["architecture"], ARCHITECTURE["architecture_args"]), epochs=12)


def taught(make: Callable[[], nn.Module], epochs: int) -> Network:
    """What `make` gives with seed 0, trained on the digits."""
    images, labels, split = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().train()
        x = torch.from_numpy(images[split == "train"])[:, None].float() / 255
        y = torch.from_numpy(labels[split == "train"])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * 19)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(64)[:19]:
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
                schedule.step()
    return Network.from_module(model, {"input": (1, 8, 8)})


@cache
def pruned_and_kept() -> tuple[Network, dict[str, tuple[np.ndarray | None, ...]]]:
    """`trained_network` at 40 % of its MACs, by magnitude, and what is left of its tensors."""
    original = trained_network()
    analysis = analyse(original)
    method = get_method("magnitude")
    config = method.config({})
    constraints = Budget((Cap("macs", max_ratio=0.4),)).constraints(analysis.costs(analysis.full_widths))
    plan = plan_widths(analysis, method.scores(original, analysis, config, 0), constraints, method.plan_options(config))
    return apply(original, analysis, plan.keep), kept_indices(analysis, plan.keep)


def pruned_network() -> Network:
    return pruned_and_kept()[0]


def plain_network(classes: int = 10) -> Network:
    """A classifier of 1×8×8 images without batch-norm, at random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, classes))
    return Network.from_module(module, {"input": (1, 8, 8)})
