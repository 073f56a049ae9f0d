"""Public CIFAR-10 ResNets through the running API: is every cap met, how closely, and what does recovery bring back?

    python -m benchmarks.public_checkpoints --data DATA [--recovery-epochs 2] [--json FILE]

DATA holds `checkpoints/resnet20-cifar10.th`, `checkpoints/resnet56-cifar10.th` (He et al., option-A shortcuts) and
`cifar10/*.parquet`. The service is started on a free port of the loopback interface with a temporary data folder. Each
network is posted data-free at three budgets; then ResNet-20 is posted with CIFAR-10 as a tar of its Parquet shards at
FLOPs ≤ 50 %. Test images are never trained on or selected by. Seed 0; device and threads are in every result.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pennyweight import Client
from pennyweight.stage_bar import StageBar
from rich.console import Console
from rich.table import Table

from examples.demo import service

BUDGETS: dict[str, dict[str, Any]] = {
    "MACs ≤ 50 %": {"macs": {"max_ratio": 0.5}},
    "params ≤ 30 %": {"params": {"max_ratio": 0.3}},
    "FLOPs ≤ 40 %, params ≤ 60 %": {"flops": {"max_ratio": 0.4}, "params": {"max_ratio": 0.6}},
}
NORMALIZATION = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
console = Console(highlight=False)


def main() -> None:
    arguments = _arguments()
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pennyweight-benchmark-")))
        client = stack.enter_context(Client(stack.enter_context(service(folder / "data"))))
        for depth in (20, 56):
            checkpoint = arguments.data / "checkpoints" / f"resnet{depth}-cifar10.th"
            model = client.upload_model(checkpoint, architecture=f"cifar_resnet{depth}")
            for name, budget in BUDGETS.items():
                rows.append(_data_free(client, f"resnet{depth}", name, model["id"], budget))
        if arguments.recovery_epochs:
            archive = _cifar10_tar(arguments.data / "cifar10", folder)
            rows.append(_with_recovery(client, arguments, archive))
    _print(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def _data_free(client: Client, network: str, name: str, model_id: str, budget: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    job = client.wait(client.create_job(model_id, budget, seed=0)["id"])
    return {"network": network, "budget": name, "seconds": time.monotonic() - started, "result": job["result"]}


def _with_recovery(client: Client, arguments: argparse.Namespace, archive: Path) -> dict[str, Any]:
    started = time.monotonic()
    epochs = arguments.recovery_epochs
    job = client.submit(
        arguments.data / "checkpoints" / "resnet20-cifar10.th",
        {"budget": {"flops": {"max_ratio": 0.5}}, "recovery": {"epochs": epochs}, "seed": 0},
        architecture="cifar_resnet20",
        dataset_path=archive,
        normalization=NORMALIZATION,
    )
    with StageBar(console) as bar:
        result = client.wait(job["id"], on_change=bar)["result"]
    name = f"FLOPs ≤ 50 %, {epochs} epochs"
    return {"network": "resnet20", "budget": name, "seconds": time.monotonic() - started, "result": result}


def _cifar10_tar(shards: Path, folder: Path) -> Path:
    archive = folder / "cifar10.tar"
    with tarfile.open(archive, "w") as tar:
        for shard in sorted(shards.glob("*.parquet")):
            tar.add(shard, arcname=shard.name)
    return archive


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("network", "budget", "cap", "of limit", "met", "masked reference", "test accuracy", "seconds")
    for row in rows:
        result = row["result"]
        for index, constraint in enumerate(result["constraints"]):
            first = index == 0
            table.add_row(
                row["network"] if first else "",
                row["budget"] if first else "",
                f"{constraint['metric']} {constraint['value']:,.0f} / {constraint['limit']:,.0f}",
                f"{constraint['value'] / constraint['limit']:.2%}",
                "yes" if constraint["met"] else "NO",
                f"{result['equivalence']['max_relative_error']:.1e}" if first else "",
                _accuracy(result) if first else "",
                f"{row['seconds']:.1f}" if first else "",
            )
    console.print(table)
    for row in rows:
        if row["result"]["baseline"]["accuracy"] is not None:
            console.print(json.dumps(row["result"]["recovery"], indent=2))


def _accuracy(result: dict[str, Any]) -> str:
    before, after = result["baseline"]["accuracy"], result["compressed"]["accuracy"]
    return "" if before is None else f"{before:.2%} → {after:.2%}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with checkpoints/ and cifar10/")
    parser.add_argument("--recovery-epochs", type=int, default=2, help="0 leaves the training run out")
    parser.add_argument("--json", type=Path, help="also write every result here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
