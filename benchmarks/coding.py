"""What every coding of shared weights takes, against the entropy of the indices and general compressors.

    python -m benchmarks.coding [--data DIR] [--small] [--only 512] [--rounds 3]

Layers: 512×4096 and 192×1024 with k equally likely values among the survivors of pruning p percent, a 4096×4096 and a
512×512×3×3 layer of normal weights; with --data, the kernels of the checkpoints in DIR/checkpoints, pruned per layer by
magnitude and put on k values by Lloyd's iteration (one layer of each, the largest). Per layer: bits per weight of each
format (payload without the codebook, column ends counted in) and of gzip -9, zstd -19 and xz -9 on the indices, one
byte each; the entropy bound; `ans` over that bound and over xz; MB/s of float32 weights that `ans` encodes and decodes
on one core, in processor time; and how much faster two threads decode, by the clock, which says something only on a
machine that is idle. METHODS' figures of the equiprobable 512×4096 layer stand beside HAC and sHAC as ψ (of 32 bits per
weight).
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zstandard
from rich.console import Console
from rich.table import Table

from core.encoding import ans, fast, formats, hac, shac
from core.encoding.layout import layout_of
from core.encoding.quantized import QuantizedTensor
from core.intake.state_dict import read_state_dict

CODINGS = ("entropy", "ans", "hac", "shac", "im", "csc", "gzip", "zstd", "xz")
# ψ of HAC and sHAC, METHODS §2.7 ("our synthetic run"): by pruned percent and k.
SPECIFIED = {
    (90, 32): (0.047, 0.068),
    (90, 256): (0.057, 0.077),
    (95, 32): (0.039, 0.035),
    (95, 256): (0.044, 0.040),
    (99, 32): (0.033, 0.0085),
    (99, 256): (0.034, 0.0097),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Folder with checkpoints/.")
    parser.add_argument("--small", action="store_true", help="Leave out the layers of 2 million weights and more.")
    parser.add_argument("--only", default="", help="Only layers whose name begins so, e.g. 512.")
    parser.add_argument("--rounds", type=int, default=3, help="Decodings, of which the fastest counts.")
    arguments = parser.parse_args()
    console = Console(width=180)
    table = Table("layer", "p", "k", box=None)
    figures = ("ans/entropy", "ans/xz", "enc MB/s", "dec MB/s", "× 2 threads", "ψ hac (spec.)", "ψ shac (spec.)")
    for heading in (*CODINGS, *figures):
        table.add_column(heading, justify="right")
    over_entropy, over_xz, over_xz_sparse, decoding = [], [], [], []
    for name, pruned, levels, tensor in layers(arguments.data, arguments.small, arguments.only):
        if not name.startswith(arguments.only):
            continue
        bits = measured(tensor)
        encode_speed, decode_speed, scaling = speeds(tensor, arguments.rounds)
        ratio = bits["ans"] / bits["entropy"] if bits["entropy"] else float("nan")
        against_xz = bits["ans"] / bits["xz"]
        header = 8 * header_bytes(tensor) / tensor.indices.size
        over_entropy.append((bits["ans"] - header) / bits["entropy"])
        over_xz.append(against_xz)
        if pruned >= 90:
            over_xz_sparse.append(against_xz)
        if tensor.indices.size >= fast.SMALLEST:
            decoding.append(decode_speed)
        specified = SPECIFIED.get((pruned, levels)) if name == "512×4096" else None
        table.add_row(
            name,
            str(pruned),
            str(levels),
            *(f"{bits[key]:.3f}" for key in CODINGS),
            f"{ratio:.4f}",
            f"{against_xz:.3f}",
            f"{encode_speed:.0f}",
            f"{decode_speed:.0f}",
            f"{scaling:.2f}",
            *psi(tensor, specified),
        )
    console.print(f"Bits per weight; {'numba' if fast.available() else 'numpy alone'}.")
    console.print(table)
    goals = [
        ("ans, its tables and parameters not counted, over the entropy (≤ 1.02)", max(over_entropy)),
        ("ans over xz -9 (≤ 1)", max(over_xz)),
        ("ans over xz -9 at p ≥ 90 (≤ 0.92)", max(over_xz_sparse, default=float("nan"))),
    ]
    for text, worst in goals:
        console.print(f"{text}: at most {worst:.4f}")
    if decoding:
        console.print(
            f"decoding, layers of {fast.SMALLEST} weights and more (≥ 200 MB/s): at least {min(decoding):.0f} MB/s"
        )
    return 0


def layers(data: Path | None, small: bool, only: str = "") -> Iterator[tuple[str, int, int, QuantizedTensor]]:
    """Name, pruned percent, asked levels, and the layer."""
    generator = np.random.default_rng(0)
    for rows, columns in ((512, 4096), (192, 1024)):
        if small and rows * columns >= 1 << 21:
            continue
        for pruned in (60, 90, 95, 99):
            for levels in (32, 256):
                yield f"{rows}×{columns}", pruned, levels, equiprobable(rows, columns, levels, pruned, generator)
    for name, shape in (("VGG-19 FC", (4096, 4096)), ("VGG-19 conv", (512, 512, 3, 3))):
        if small or not name.startswith(only):
            continue
        for pruned in (60, 95):
            weights = generator.normal(size=shape).astype(np.float32)
            yield name, pruned, 32, shared(weights, 32, pruned)
    for path in sorted((data / "checkpoints").glob("*")) if data else []:
        kernels = [value for value in checkpoint_arrays(path).values() if value.ndim >= 2]
        largest = sorted(kernels, key=lambda value: -value.size)[:1]
        for pruned, levels in ((0, 256), (0, 32), (60, 32), (90, 32)):
            for value in largest:
                yield f"{path.stem}: {'×'.join(map(str, value.shape))}", pruned, levels, shared(value, levels, pruned)


def equiprobable(rows: int, columns: int, levels: int, pruned: int, generator: np.random.Generator) -> QuantizedTensor:
    codebook = np.concatenate([[0], np.sort(generator.normal(size=levels))]).astype(np.float32)
    alive = generator.random((columns, rows)) >= pruned / 100
    return QuantizedTensor(np.where(alive, generator.integers(1, levels + 1, (columns, rows)), 0), codebook, 0)


def shared(weights: np.ndarray, levels: int, pruned: int) -> QuantizedTensor:
    """Pruned by magnitude, the survivors on `levels` values by Lloyd's iteration from quantiles (exact on sorted values)."""
    flat = weights.reshape(-1)
    alive = np.abs(flat) > np.quantile(np.abs(flat), pruned / 100) if pruned else np.ones(flat.size, bool)
    ordered = np.sort(flat[alive]).astype(np.float64)
    sums = np.concatenate([[0], np.cumsum(ordered)])
    centres = ordered[((np.arange(levels) + 0.5) / levels * len(ordered)).astype(int)]
    for _ in range(50):
        edges = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        begins, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(ordered)]])
        filled = ends > begins
        centres = (sums[ends] - sums[begins])[filled] / (ends - begins)[filled]
    codebook = np.unique(centres.astype(np.float32))
    index = np.searchsorted((codebook[1:] + codebook[:-1]) / 2, flat)
    if not pruned:
        return QuantizedTensor(index.reshape(weights.shape), codebook)
    index = np.where(alive, index + 1, 0)
    return QuantizedTensor(index.reshape(weights.shape), np.concatenate([[0], codebook]).astype(np.float32), 0)


def checkpoint_arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.float().numpy() for name, tensor in read_state_dict(path).tensors.items()}


def measured(tensor: QuantizedTensor) -> dict[str, float]:
    """Bits per weight, codebook left out."""
    size = tensor.indices.size
    counts = np.bincount(tensor.indices.reshape(-1))
    used = counts[counts > 0]
    # A reserved zero and 256 levels make 257 indices: the high bytes stand apart, where they cost next to nothing.
    narrow = tensor.indices.astype(np.uint8).tobytes()
    if len(tensor.codebook) > 256:
        narrow += (tensor.indices >> 8).astype(np.uint8).tobytes()
    found = {"entropy": float((used * np.log2(size / used)).sum()) / size}
    found |= {name: format.size_bits(tensor) / size for name, format in formats.FORMATS.items()}
    compressors: dict[str, Callable[[bytes], bytes]] = {
        "gzip": lambda data: gzip.compress(data, 9),
        "zstd": zstandard.ZstdCompressor(level=19).compress,
        "xz": lambda data: lzma.compress(data, preset=9),
    }
    return found | {name: 8 * len(compress(narrow)) / size for name, compress in compressors.items()}


def header_bytes(tensor: QuantizedTensor) -> int:
    """Of an `ans` body: what is not states, words and extra bits."""
    return ans.header_bytes(memoryview(ans.encode_body(tensor)), layout_of(tensor))


def speeds(tensor: QuantizedTensor, rounds: int) -> tuple[float, float, float]:
    """MB of float32 weights that `ans` encodes and decodes per second of processor time; and how many times as fast two
    threads decode, by the clock, in rounds that take turns with one thread's."""
    megabytes = 4 * tensor.indices.size / 1e6
    start = time.process_time()
    payload, _ = formats.encode(tensor, "ans")
    encoding = time.process_time() - start
    best = float("inf")
    clock = {1: float("inf"), 2: float("inf")}
    for _ in range(rounds + 1):  # the first compiles
        start = time.process_time()
        formats.decode(payload, "ans", layout_of(tensor)).values()
        best = min(best, time.process_time() - start)
        for threads in clock:
            start = time.perf_counter()
            formats.decode(payload, "ans", layout_of(tensor), threads)
            clock[threads] = min(clock[threads], time.perf_counter() - start)
    return megabytes / max(encoding, 1e-9), megabytes / max(best, 1e-9), clock[1] / max(clock[2], 1e-9)


def psi(tensor: QuantizedTensor, specified: tuple[float, float] | None) -> tuple[str, str]:
    """ψ with the codebook: of HAC's stream and code, of all of sHAC, as the specification's run counts them."""
    if specified is None:
        return "", ""
    words, codebook = 32 * tensor.indices.size, 32 * len(tensor.codebook)
    account = hac.accounting(tensor)
    dense = (account.payload + account.code + codebook) / words
    sparse = (shac.accounting(tensor).total + codebook) / words
    return f"{dense:.4f} ({specified[0]})", f"{sparse:.4f} ({specified[1]})"


if __name__ == "__main__":
    sys.exit(main())
