"""Accuracy against bytes: CIFAR-10 ResNets with shared weights, quantiser by quantiser, before and after fine-tuning.

    python -m benchmarks.compact_cifar --data DATA [--networks resnet20 resnet56] [--ratios 0.16 0.12 0.08] [--seeds 3]
                                       [--quantizers cws pws uq ecsq] [--fine-tune 0.08] [--steps N] [--examples N]
                                       [--json FILE] [--svg FILE]

DATA holds `checkpoints/resnet20-cifar10.th`, `checkpoints/resnet56-cifar10.th` (He et al., option-A shortcuts) and
`cifar10/*.parquet`. Each quantiser gets each cap on `model.pwt`, a share of the original's safetensors bytes, and spends it
on the layers by rate and distortion; everything in the file counts: header, graph, batch-norms, codebooks. Nothing is trained
but where it says so: *alone*, every weight is rounded by itself; *together*, layers make up for each other in closed form on
some training images, as a job with images does it; *fine-tuned*, at the caps of `--fine-tune`, the shared values (with biases
and batch-norms) are trained for a short run after that, on `--shards` of the training images. Accuracy is on the test images,
all 10,000 or `--examples` of them, which decide nothing. Settings whose every row is in FILE are not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.scores import cifar10
from core.deliver.pwt_file import Compact, measured_pwt, skeleton_of
from core.encoding.compensation import compensated
from core.encoding.container import PwtSummary
from core.encoding.fine_tuning import fine_tune_shared, plan_run
from core.encoding.kernels import Shared, find_kernels, grouped
from core.encoding.options import EncodingOptions
from core.encoding.quantizers import QUANTIZERS
from core.encoding.sensitivity import sensitivities
from core.encoding.sharing import Landing
from core.intake import load_network
from core.network import Network
from core.planning import safetensors_bytes
from core.recovery import ImageDataset, accuracy

NETWORKS = ("resnet20", "resnet56")
KINDS = ("alone", "together", "fine-tuned")
CPU = torch.device("cpu")
_MOST_LOST = 2.5
_COLOURS = {"cws": "#2f6fde", "pws": "#c62a2f", "uq": "#187a43", "ecsq": "#8e4ec6"}
console = Console(highlight=False)


def main() -> None:
    arguments = _arguments()
    rows = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else []
    dataset = cifar10(arguments.data / "cifar10", train_shards=arguments.shards) if arguments.networks else None
    for name in arguments.networks:
        network = load_network(
            arguments.data / "checkpoints" / f"{name}-cifar10.th", architecture=f"cifar_{name}", architecture_args={}
        )
        examples = min(arguments.examples, len(dataset.test))
        known = [one for one in rows if (one["network"], one["examples"]) == (name, examples)]
        original = (
            known[0]["original_accuracy"]
            if known
            else accuracy(network, dataset.test.sample(arguments.examples), dataset)
        )
        console.print(f"{name}: {safetensors_bytes(network):,} bytes, test accuracy {original:.2%}")
        for seed, ratio, quantizer in product(range(arguments.seeds), arguments.ratios, arguments.quantizers):
            done = {
                one["kind"]
                for one in known
                if (one["quantizer"], one["prune"], one["cap"], one["seed"])
                == (quantizer, arguments.prune, ratio, seed)
            }
            if _wanted(ratio, arguments) <= done:
                continue
            options = EncodingOptions(quantizer, prune=arguments.prune)
            for row in _measured(network, dataset, options, ratio, seed, arguments):
                row |= {"network": name, "original_accuracy": original}
                rows = [*(one for one in rows if _key(one) != _key(row)), row]
                console.print(json.dumps(row))
                if arguments.json:
                    arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    _print(rows)
    if arguments.svg:
        arguments.svg.write_text(_svg(rows), encoding="utf-8")


def _wanted(ratio: float, arguments: argparse.Namespace) -> set[str]:
    """The kinds of row of one setting."""
    return {"alone", "together"} | ({"fine-tuned"} if ratio in arguments.fine_tune else set())


def _measured(
    network: Network,
    dataset: ImageDataset,
    options: EncodingOptions,
    ratio: float,
    seed: int,
    arguments: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """One row each for weights rounded alone, rounded together and, where asked for, fine-tuned."""
    started = time.monotonic()
    original_bytes = safetensors_bytes(network)
    skeleton = skeleton_of(network)
    groups = grouped(find_kernels(network, options.prune), unified=False)

    def stored(found: Shared) -> PwtSummary:
        return measured_pwt(found.network, Compact(found.tensors, skeleton))

    def row(found: Shared, kind: str) -> dict[str, Any]:
        summary = stored(found)
        weights = sum(tensor.indices.size for tensor in found.tensors.values())
        coded = sum(summary.bytes_of[name] for name in found.tensors)
        return {
            "quantizer": options.quantizer,
            "prune": options.prune,
            "cap": ratio,
            "seed": seed,
            "kind": kind,
            "file_bytes": summary.file_bytes,
            "of_original": round(summary.file_bytes / original_bytes, 5),
            "psi": round(coded / (4 * weights), 5),
            "accuracy": accuracy(found.network, dataset.test.sample(arguments.examples), dataset),
            "examples": min(arguments.examples, len(dataset.test)),
            "seconds": round(time.monotonic() - started, 1),
        }

    names = [kernel.name for group in groups for kernel in group.kernels]
    # All but PWS differ between seeds only by what the sensitivities see, and by the images.
    sensitivity = sensitivities(network, names, dataset, seed=seed, device=CPU)
    landing = Landing(
        network, groups, options, sensitivity, lambda found: stored(found).file_bytes, int(ratio * original_bytes)
    )
    found = landing.rounded(seed)
    yield row(found, "alone")
    # Evenly spaced, for each seed others.
    spaced = torch.arange(arguments.images) * len(dataset.train) // arguments.images
    images = dataset.train.images[(spaced + seed) % len(dataset.train)]
    together = landing.compensated(seed, lambda choices: compensated(network, dataset.prepare(images), choices, seed))
    if together is not None:
        found = together
        yield {**row(found, "together"), "images": len(images)}
    if ratio in arguments.fine_tune:
        run = plan_run(network, len(dataset.train), None, CPU)
        run = replace(run, steps=arguments.steps or run.steps)
        learnt = fine_tune_shared(found, network, dataset, run, seed=seed, device=CPU, tell=lambda step, message: None)
        if learnt is not None:
            yield {**row(learnt, "fine-tuned"), "steps": run.steps, "images": len(dataset.train)}


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("network", "quantizer", "prune", "cap", "seed", "kind"))


def _averaged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per setting, over its seeds, in a fixed order."""
    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda one: (one["network"], KINDS.index(one["kind"]), one["quantizer"], -one["cap"])):
        key = (row["network"], row["kind"], row["quantizer"], row["prune"], row["cap"])
        settings.setdefault(key, []).append(row)
    return [
        {
            **members[0],
            "seeds": len(members),
            "of_original": statistics.fmean(one["of_original"] for one in members),
            "psi": statistics.fmean(one["psi"] for one in members),
            "accuracy": statistics.fmean(one["accuracy"] for one in members),
            "spread": statistics.stdev(one["accuracy"] for one in members) if len(members) > 1 else None,
            "lost": 100 * statistics.fmean(one["original_accuracy"] - one["accuracy"] for one in members),
        }
        for members in settings.values()
    ]


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(
        "network", "quantiser", "values", "of the bytes", "ψ of kernels", "accuracy", "points lost", "images", "seeds"
    )
    for row in _averaged(rows):
        table.add_row(
            row["network"],
            row["quantizer"] + (f", {row['prune']:g} % pruned" if row["prune"] else ""),
            row["kind"],
            f"{row['of_original']:.2%}",
            f"{row['psi']:.2%}",
            f"{100 * row['accuracy']:.2f}" + (f" ± {100 * row['spread']:.2f} %" if row["spread"] is not None else " %"),
            f"{row['lost']:+.2f}",
            f"{row['examples']:,}",
            str(row["seeds"]),
        )
    console.print(table)


def _svg(rows: list[dict[str, Any]]) -> str:
    """Points lost against the share of the bytes: a panel per network, a colour per quantiser. Hollow: weights rounded alone;
    filled: together; rings: fine-tuned. What loses more than the axis reaches is at its end."""
    averaged = _averaged(rows)
    networks = sorted({row["network"] for row in averaged})
    width, height, left, low = 420, 300, 56, 40
    most = max(0.5, min(_MOST_LOST, max((row["lost"] for row in averaged), default=1.0)))
    widest = max((row["of_original"] for row in averaged), default=0.2) * 1.1
    parts = []
    for panel, network in enumerate(networks):
        shift = panel * width

        def place(row: dict[str, Any], shift: int = shift) -> tuple[float, float]:
            lost = min(max(row["lost"], 0.0), most)
            return (
                shift + left + (width - left - 16) * row["of_original"] / widest,
                16 + (height - low - 16) * lost / most,
            )

        parts.append(
            f'<path d="M{shift + left} 16V{height - low}H{shift + width - 16}" fill="none" stroke="#888"/>'
            f'<text x="{shift + left + 8}" y="{height - low - 8}">{escape(network)}</text>'
            f'<text x="{shift + left - 6}" y="20" text-anchor="end">0</text>'
            f'<text x="{shift + left - 6}" y="{height - low}" text-anchor="end">−{most:.1f}</text>'
            f'<text x="{shift + left}" y="{height - 22}">0</text>'
            f'<text x="{shift + width - 16}" y="{height - 22}" text-anchor="end">{widest:.0%} of the bytes</text>'
        )
        for quantizer, colour in _COLOURS.items():
            own = [row for row in averaged if row["network"] == network and row["quantizer"] == quantizer]
            for kind, dashes, fill in (("alone", "4 3", "#fff"), ("together", "", colour)):
                line = sorted((place(row) for row in own if row["kind"] == kind), key=lambda point: point[0])
                points = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
                drawn = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"'
                parts.append(f'<polyline points="{points}" {drawn}/>')
                parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}"/>' for x, y in line]
            tuned = [place(row) for row in own if row["kind"] == "fine-tuned"]
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="none" stroke="{colour}"/>' for x, y in tuned]
    legend = "".join(
        f'<text x="{left + 70 * index}" y="{height - 4}" fill="{colour}">{name}</text>'
        for index, (name, colour) in enumerate(_COLOURS.items())
    )
    legend += f'<text x="{left + 70 * len(_COLOURS)}" y="{height - 4}">○ alone  ● together</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width * max(1, len(networks))} {height}" '
        f'font-family="sans-serif" font-size="12"><title>Points of accuracy lost against bytes</title>'
        f"{''.join(parts)}{legend}</svg>\n"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with checkpoints/ and cifar10/")
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS), help="none prints FILE")
    parser.add_argument("--quantizers", nargs="+", choices=sorted(QUANTIZERS), default=sorted(QUANTIZERS))
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.16, 0.12, 0.08], help="caps on model.pwt")
    parser.add_argument("--fine-tune", nargs="*", type=float, default=[0.08], help="caps at which to train the values")
    parser.add_argument("--prune", type=float, default=0.0, help="percentage of each layer's weights to drop first")
    parser.add_argument("--steps", type=int, help="of fine-tuning; what a job would do unless given")
    parser.add_argument("--examples", type=int, default=10_000, help="test images to measure on")
    parser.add_argument(
        "--images", type=int, default=512, help="training images by which layers make up for each other"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=4, help="Parquet files of training images to use")
    parser.add_argument("--json", type=Path, help="keeps every row")
    parser.add_argument("--svg", type=Path, help="the plot")
    return parser.parse_args()


if __name__ == "__main__":
    main()
