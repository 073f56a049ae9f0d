"""Kernel sharing on CIFAR-10, phase by phase: accuracy and counts, then the delivered model's own figures.

    python -m benchmarks.penni_cifar --data FOLDER --net resnet20 [--ratio 0.5] [--epochs 1 3] [--device cpu] [--json FILE]
        [--sparse-params 0.086] [--beside torch-pruning] [--final-only] [--checkpoint FILE]

FOLDER holds `cifar10/*.parquet` and, for resnet20 and resnet56, `checkpoints/{net}-cifar10.th`; resnet18 and vgg16 are trained
first (`--baseline-epochs`), or read from `--baseline FILE` (safetensors), where they are also written. `--ratio` prunes whole
columns onto shares of the MACs, counted dense; `--sparse-params` prunes single coefficients onto shares of the parameters,
counted by nonzeros as in the paper. Accuracy is on test images (`--test-images` of them, all by default), which decide nothing; `--final-only` leaves out that of the phases. Every
number of `--epochs` trains anew from the same fitted network. `--beside torch-pruning` (resnet20) takes its network on the
same cap through the same loop with the same seed. A run that was stopped goes on from `--checkpoint`: the closed forms are not
fitted again, and training continues at the step that was kept last. `--train-images` trains on part of the train split.
Latency is of the ONNX file on one thread of this machine; the peak is what loading and running it adds to a process (Linux).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from benchmarks.recovery_cpu import WAYS, Trial
from benchmarks.scores import cifar10
from core.analysis import profile
from core.architectures import build
from core.budget import Budget, Cap, Costs
from core.checkpoint import Checkpoint
from core.deliver.latency import measure_latencies
from core.deliver.onnx_file import write_onnx
from core.intake import load_network, save_safetensors
from core.module_form import to_module, with_trained
from core.network import Network
from core.penni.options import PenniConfig
from core.penni.reduction import reduce_columns
from core.penni.rewriting import trainable
from core.penni.slimming import deliver
from core.penni.sparse import sparse_network_counts
from core.recovery import ImageDataset, RecoveryConfig, accuracy, recover
from core.recovery.evaluation import predict, top1
from core.recovery.steps import Steps

ARCHITECTURES = {
    "resnet20": "cifar_resnet20",
    "resnet56": "cifar_resnet56",
    "resnet18": "cifar_resnet18",
    "vgg16": "cifar_vgg16_bn",
}
_PEAK = """
import re, sys
from pathlib import Path
import numpy, onnxruntime
def kib(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = kib("VmRSS")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
shape = [1, *session.get_inputs()[0].shape[1:]]
session.run(None, {session.get_inputs()[0].name: numpy.zeros(shape, numpy.float32)})
print(kib("VmHWM") - before)
"""


@dataclass(frozen=True)
class Aim:
    """What one network is pruned onto. macs: share of the dense count, by columns. sparse_params: share of the parameters by
    nonzeros, by single coefficients."""

    macs: float | None = None
    sparse_params: float | None = None

    @property
    def name(self) -> str:
        return str(self.macs) if self.sparse_params is None else f"sparse_{self.sparse_params}"

    def cap(self, base: Costs) -> Cap:
        return Cap("params", maximum=base.params) if self.macs is None else Cap("macs", max_ratio=self.macs)

    def config(self, bases: int | None, round_to: int) -> PenniConfig:
        unit = "column" if self.sparse_params is None else "coefficient"
        return PenniConfig(unit=unit, bases=bases or "auto", round_to=round_to, sparse_params=self.sparse_params)


def main() -> None:
    arguments = _arguments()
    device = torch.device(arguments.device)
    dataset = cifar10(arguments.data / "cifar10", arguments.train_images)
    original = _original(arguments, dataset, device)
    found = []
    aims = [Aim(macs=share) for share in arguments.ratio] + [
        Aim(sparse_params=share) for share in arguments.sparse_params
    ]
    for aim in aims:
        found.append(_compressed(original, dataset, aim, arguments))
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _compressed(original: Network, dataset: ImageDataset, aim: Aim, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every phase on the way to one aim, printed as it comes."""
    device, test = torch.device(arguments.device), dataset.test.sample(arguments.test_images)
    base = profile(original).costs
    rows: list[dict[str, Any]] = []

    def watch(phase: str, network: Network, costs: Costs, sparse: dict[str, int] | None = None) -> None:
        correct = top1(predict(network, test.images, dataset, device=device), test.labels)
        rows.append(_row(phase, correct, base, costs, sparse))
        print(f"{phase}: {100 * correct:.2f} % at {rows[-1]['macs']:.3f} of the MACs", flush=True)

    def phase(name: str, network: Network, costs: Costs) -> None:
        if not arguments.final_only:
            watch(name, network, costs)

    phase("original", original, base)
    constraints = Budget((aim.cap(base),)).constraints(base)
    images = dataset.prepare(dataset.train.sample(arguments.images).images)
    checkpoint = Checkpoint(arguments.checkpoint, json.dumps([arguments.net, arguments.seed]))
    began = time.monotonic()
    reduced = reduce_columns(
        original,
        aim.config(arguments.bases, arguments.round_to).pruning(constraints, base),
        images,
        device=device,
        steps=Steps(checkpoint, f"penni_{aim.name}", original),
        watch=phase,
    )
    fitting_s = time.monotonic() - began
    fitted = trainable(reduced.network, reduced.shared)
    network, trained = fitted, []
    for epochs in arguments.epochs:
        began = time.monotonic()
        config = RecoveryConfig(epochs=epochs, learning_rate=arguments.learning_rate)
        recovered = recover(
            fitted,
            original,
            dataset,
            config,
            kept=reduced.kept,
            seed=arguments.seed,
            device=device,
            checkpoint=checkpoint,
            step=f"recover_{aim.name}_{epochs}",
        )
        network = recovered.network
        trained.append(_training(epochs, recovered.details, time.monotonic() - began))
        sparse = sparse_network_counts(reduced.network, network, reduced.shared)
        watch(f"fine-tuned, {epochs} epochs", network, reduced.costs, sparse)
    if arguments.beside and aim.macs:
        rows += _torch_pruning(original, dataset, aim.macs, arguments)
    delivered = deliver(reduced.network, network, reduced.layers, reduced.dense)
    figures = {
        "net": arguments.net,
        "seed": arguments.seed,
        "train_images": len(dataset.train),
        "test_images": len(test),
        "unit": reduced.report["unit"],
        "columns": [reduced.report["columns"], reduced.report["columns_before"]],
        "two_stage_layers": [reduced.report["two_stage_layers"], reduced.report["layers"]],
        "fitting_s": round(fitting_s, 1),
        "training": trained,
        **_measured(original, delivered),
    }
    _print(rows, figures)
    return {**asdict(aim), "phases": rows, **figures}


def _training(epochs: int, details: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What the loop says of itself; `kept` is the stage that validation images chose."""
    training = details["training"]
    chosen = ("learning_rate", "batch_size", "distill", "precision", "threads", "images_per_s")
    return {
        "epochs": epochs,
        "kept": details["method"],
        **{name: training.get(name) for name in chosen},
        "seconds": round(seconds, 1),
    }


def _torch_pruning(
    original: Network, dataset: ImageDataset, ratio: float, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Its network on the same cap, as its users prune, through the same training for as many epochs."""
    rows = []
    for epochs in arguments.epochs:
        row = WAYS["torch-pruning"](original, dataset, arguments.seed, True, Trial(ratio, epochs))
        before, after, macs = (row[name] for name in ("before", "after", "macs_ratio"))
        print(f"Torch-Pruning, {epochs} epochs: {before:.2%} → {after:.2%} at {macs:.3f} of the MACs", flush=True)
        rows.append({"phase": f"Torch-Pruning, fine-tuned, {epochs} epochs", "accuracy": after, "macs": macs})
    return rows


def _original(arguments: argparse.Namespace, dataset: ImageDataset, device: torch.device) -> Network:
    name = ARCHITECTURES[arguments.net]
    stored = arguments.baseline or arguments.data / "checkpoints" / f"{arguments.net}-cifar10.th"
    if stored.exists():
        return load_network(stored, architecture=name)
    if arguments.baseline is None:
        raise SystemExit(f"{stored} does not exist; give --baseline FILE, and it is trained and written there.")
    torch.manual_seed(arguments.seed)
    network = _trained(Network.from_module(build(name, {}), {"input": (3, 32, 32)}), dataset, arguments, device)
    print(f"baseline: {100 * accuracy(network, dataset.test, dataset, device=device):.2f} %", flush=True)
    save_safetensors(network.tensors, arguments.baseline)
    return load_network(arguments.baseline, architecture=name)


def _trained(network: Network, dataset: ImageDataset, arguments: argparse.Namespace, device: torch.device) -> Network:
    """From scratch: SGD 0.1 on 128 images, one cycle, weight decay 5e-4, shifts by 4 pixels and mirrors."""
    module = to_module(network).to(device=device, memory_format=torch.channels_last).train()
    train = dataset.train.to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(train) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=arguments.baseline_epochs * steps)
    for _ in range(arguments.baseline_epochs):
        for rows in torch.randperm(len(train)).split(128)[:steps]:
            images = F.pad(train.images[rows], (4, 4, 4, 4))
            top, left = torch.randint(0, 9, (2,)).tolist()
            images = images[..., top : top + 32, left : left + 32]
            flipped = torch.rand(len(rows), 1, 1, 1, device=device) < 0.5
            images = torch.where(flipped, images.flip(3), images)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                scores = module(dataset.prepare(images).contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(scores.float(), train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return with_trained(network, module.to(memory_format=torch.contiguous_format))


def _row(phase: str, correct: float, base: Costs, costs: Costs, sparse: dict[str, int] | None) -> dict[str, Any]:
    row = {"phase": phase, "accuracy": correct, "macs": costs.macs / base.macs, "params": costs.params / base.params}
    if sparse is not None:
        row |= {"sparse_macs": sparse["macs"] / base.macs, "sparse_params": sparse["params"] / base.params}
    return row


def _measured(original: Network, delivered: Network) -> dict[str, Any]:
    """Of the ONNX files: latency on one thread, bytes, and the peak of a process that runs them."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {"original": Path(folder) / "original.onnx", "delivered": Path(folder) / "delivered.onnx"}
        for path, network in zip(paths.values(), (original, delivered), strict=True):
            write_onnx(network, path)
        found = measure_latencies([(paths["original"], original), (paths["delivered"], delivered)])
        measured: dict[str, Any] = {}
        for (name, path), network, latency in zip(paths.items(), (original, delivered), found, strict=True):
            costs = profile(network).costs
            command = [sys.executable, "-c", _PEAK, str(path)]
            peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            measured[name] = {
                "params": costs.params,
                "macs": costs.macs,
                "peak_activation_bytes": costs.peak_activation_bytes,
                "file_bytes": path.stat().st_size,
                "latency_ms": latency.p50,
                "process_peak_kib": peak,
            }
    return measured


def _print(rows: list[dict[str, Any]], figures: dict[str, Any]) -> None:
    table = Table("phase", "test accuracy", "MACs", "params", "sparse MACs", "sparse params")
    for row in rows:
        shares = [row.get(name) for name in ("macs", "params", "sparse_macs", "sparse_params")]
        table.add_row(
            row["phase"], f"{100 * row['accuracy']:.2f} %", *("" if one is None else f"{one:.3f}" for one in shares)
        )
    console = Console(highlight=False, width=150)
    console.print(table)
    console.print_json(json.dumps(figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--net", choices=list(ARCHITECTURES), default="resnet20")
    parser.add_argument("--ratio", type=float, nargs="*", default=[0.5], help="shares of the MACs, counted dense")
    parser.add_argument("--sparse-params", type=float, nargs="*", default=[], help="of the parameters, by nonzeros")
    parser.add_argument("--epochs", type=int, nargs="*", default=[1], help="none for the closed forms alone")
    parser.add_argument("--beside", choices=["torch-pruning"])
    parser.add_argument("--final-only", action="store_true", help="no accuracy of the closed-form phases")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--images", type=int, default=512, help="of the closed-form fits")
    parser.add_argument("--bases", type=int, help="shared kernels per layer; by default enough for the budget")
    parser.add_argument("--round-to", type=int, default=16)
    parser.add_argument("--train-images", type=int, help="all of the train split by default")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--baseline-epochs", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="where a run in pieces keeps what is done")
    parser.add_argument("--json", type=Path, help="also write every figure here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
