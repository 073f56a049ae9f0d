"""The whole service in one run: `make demo`.

Trains a small residual CNN on scikit-learn's handwritten digits, starts `pennyweightd serve` on a free port with a
temporary data folder, posts the checkpoint, the images and a budget, follows the job, downloads the artifacts, runs
both delivered forms on test images that nobody trained on, and prints before and after in one table.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from pennyweight import Client
from pennyweight.stage_bar import StageBar
from pennyweight.tables import result_table
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn import functional as F

from core.architectures import build

SEED = 0
ARCHITECTURE_ARGS = {"depth": 8, "width": 16, "in_channels": 1, "num_classes": 10}
BUDGET = {"flops": {"max_ratio": 0.4}}
TRAINING_EPOCHS = 12
console = Console(highlight=False)


def main() -> None:
    """Run the demo; exits non-zero if the budget or one of the delivered forms is off."""
    started = time.monotonic()
    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory(prefix="pennyweight-demo-") as folder:
        workplace = Path(folder)
        images, labels, split = digits()
        console.print("[bold]1[/]  Train a residual CNN on 8×8 handwritten digits")
        checkpoint = workplace / "digits-resnet8.safetensors"
        save_file(train(images, labels, split, ARCHITECTURE_ARGS), checkpoint)
        dataset = workplace / "digits.npz"
        np.savez(dataset, images=images, labels=labels, split=split)

        console.print("[bold]2[/]  Start the service: pennyweightd serve --port 0")
        with service(workplace / "data") as url, Client(url) as client:
            console.print(f"[bold]3[/]  POST {url}/v1/jobs   budget {BUDGET}")
            job = client.submit(
                checkpoint,
                {"name": "digits at 40 % of the FLOPs", "budget": BUDGET, "seed": SEED},
                architecture="cifar_resnet",
                architecture_args=ARCHITECTURE_ARGS,
                input_shape=images.shape[1:],
                dataset_path=dataset,
            )
            with StageBar(console) as bar:
                job = client.wait(job["id"], on_change=bar, timeout_s=600)
            out = workplace / "out"
            paths = client.download(job["id"], out)
        console.print(f"[bold]4[/]  Download {', '.join(path.name for path in paths)}")

        result = job["result"]
        test_images, test_labels = images[split == "test"], labels[split == "test"]
        delivered = {
            "model.onnx in ONNX Runtime": onnx_accuracy(out / "model.onnx", test_images, test_labels),
            "model.py + model.safetensors in PyTorch": torch_accuracy(out, test_images, test_labels),
        }
        console.print(f"[bold]5[/]  Run both on {len(test_labels)} test images\n")
        console.print(result_table(result, title="handwritten digits, budget: FLOPs ≤ 40 %"))
        forms = Table("delivered form", "test accuracy", box=None)
        for form, accuracy in delivered.items():
            forms.add_row(form, f"{accuracy:.2%}")
        console.print()
        console.print(forms)
        console.print(
            f"\nmasked reference: relative error {result['equivalence']['max_relative_error']:.1e}; "
            f"{time.monotonic() - started:.0f} s in all"
        )
        check(result, delivered)


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1,797 images as uint8 [N, 1, 8, 8] with 0–255 grey levels, their labels, and a seeded 70/10/20 split."""
    bundle = load_digits()
    images = np.round(bundle.images * (255 / 16)).astype(np.uint8)[:, None]
    order = np.random.default_rng(SEED).permutation(len(images))
    split = np.empty(len(images), dtype="<U5")
    split[order] = np.repeat(["train", "val", "test"], np.diff([0, *(len(order) * np.array([7, 8, 10]) // 10)]))
    return images, bundle.target.astype(np.int64), split


def train(
    images: np.ndarray, labels: np.ndarray, split: np.ndarray, architecture_args: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """A few seconds of ordinary training; returns the state_dict."""
    model = build("cifar_resnet", architecture_args)
    x = torch.from_numpy(images[split == "train"]).float() / 255
    y = torch.from_numpy(labels[split == "train"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps_per_epoch = len(x) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=TRAINING_EPOCHS * steps_per_epoch)
    model.train()
    for _ in range(TRAINING_EPOCHS):
        order = torch.randperm(len(x))
        for step in range(steps_per_epoch):
            batch = order[step * 64 : (step + 1) * 64]
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return {name: tensor.detach().contiguous() for name, tensor in model.eval().state_dict().items()}


@contextmanager
def service(data_folder: Path) -> Iterator[str]:
    """`pennyweightd serve` on a free port of the loopback interface; yields its URL and stops it at the end."""
    log = data_folder.parent / "service.log"
    command = [sys.executable, "-m", "pennyweightd", "serve", "--port", "0", "--data-dir", str(data_folder)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PENNYWEIGHT_")}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        yield _announced_url(process, log)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _announced_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        match = re.search(r"http://127\.0\.0\.1:\d+", log.read_text(errors="replace"))
        if match:
            return match[0]
        time.sleep(0.1)
    raise SystemExit(f"The service did not start. Its log:\n{log.read_text(errors='replace')}")


def onnx_accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 of the delivered ONNX graph."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.astype(np.float32) / 255})
    return float((logits.argmax(axis=1) == labels).mean())


def torch_accuracy(folder: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 of the generated `model.py` with its `model.safetensors`: plain PyTorch, nothing of Pennyweight."""
    spec = importlib.util.spec_from_file_location("delivered_model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.no_grad():
        logits = module.load(folder / "model.safetensors")(torch.from_numpy(images).float() / 255)
    return float((logits.argmax(dim=1).numpy() == labels).mean())


def check(result: dict[str, Any], delivered: dict[str, float]) -> None:
    """Fail loudly rather than print a table that is not true."""
    wrong = [form for form, accuracy in delivered.items() if abs(accuracy - result["compressed"]["accuracy"]) > 0.005]
    if wrong or not result["met"] or not result["equivalence"]["passed"]:
        raise SystemExit(f"The demo's result does not hold: met={result['met']}, forms that disagree: {wrong}")


if __name__ == "__main__":
    main()
