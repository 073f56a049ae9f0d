"""Products in compressed form against dense float32 products of the same matrix in the same run.

    python -m benchmarks.compressed_dot [--rows 512] [--columns 4096] [--levels 32] [--batch 1] [--threads 1]
                                      [--rounds 15] [--pruned 97 99]

For pruning of p percent: the time of y = xᵀW (best of rounds that take turns) dense by BLAS and in HAC, sHAC and IM, each
relative to dense; the stored bytes; and the peak that a product allocates, by tracemalloc, beside the stored bytes. Run it
with OMP_NUM_THREADS set to --threads, so that BLAS has as many.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from core.encoding import fast
from core.encoding.products import PRODUCT_FORMATS, TILE_BYTES, CompressedMatrix
from core.encoding.quantized import QuantizedTensor

PRUNED_PERCENT = (0, 30, 60, 80, 90, 95, 97, 99)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("rows", 512),
        ("columns", 4096),
        ("levels", 32),
        ("batch", 1),
        ("threads", 1),
        ("rounds", 15),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--pruned", type=int, nargs="+", default=PRUNED_PERCENT, help="Percent of pruned weights.")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    x = generator.normal(size=(arguments.batch, arguments.rows)).astype(np.float32)
    table = Table("p", "dense ms", box=None)
    for format in PRODUCT_FORMATS:
        for heading in (f"{format} ms", "× dense", "stored kB", "held kB"):
            table.add_column(heading, justify="right")
    faster = {}
    for pruned in arguments.pruned:
        tensor = _layer(arguments.rows, arguments.columns, arguments.levels, 1 - pruned / 100, generator)
        dense = np.ascontiguousarray(tensor.values().T)
        matrices = [CompressedMatrix.of(tensor, format) for format in PRODUCT_FORMATS]
        products: list[Callable[[], np.ndarray]] = [lambda dense=dense: x @ dense]
        products += [lambda matrix=matrix: matrix.multiply(x, threads=arguments.threads) for matrix in matrices]
        expected = products[0]()
        for product in products[1:]:
            error = np.abs(product() - expected).max() / np.abs(expected).max()
            assert error <= 1e-5, f"{error} from the dense product"
        times = _best_of_turns(products, arguments.rounds)
        row = [str(pruned), f"{times[0] * 1e3:.2f}"]
        for matrix, product, seconds in zip(matrices, products[1:], times[1:], strict=True):
            held = _held(product)
            row += [
                f"{seconds * 1e3:.2f}",
                f"{seconds / times[0]:.2f}",
                f"{matrix.stored_bytes / 1e3:.0f}",
                f"{held / 1e3:.0f}",
            ]
            faster[pruned, matrix.format] = seconds < times[0]
        table.add_row(*row)
    console = Console(width=160)
    size = 4 * arguments.rows * arguments.columns
    console.print(
        f"{arguments.rows}×{arguments.columns} ({size / 2**20:.0f} MiB dense), k = {arguments.levels}, batch {arguments.batch}, "
        f"{arguments.threads} thread(s), tile {TILE_BYTES / 1e3:.0f} kB, {'numba' if fast.available() else 'numpy'}"
    )
    console.print(table)
    sparse = [pruned for pruned in arguments.pruned if pruned >= 97]
    met = all(faster[pruned, "shac"] for pruned in sparse)
    console.print(f"sHAC faster than dense at p ≥ 97: {'yes' if met else 'no'}")
    return 0


def _layer(rows: int, columns: int, levels: int, density: float, generator: np.random.Generator) -> QuantizedTensor:
    codebook = np.concatenate([[0], np.sort(generator.normal(size=levels))]).astype(np.float32)
    alive = generator.random((columns, rows)) < density
    return QuantizedTensor(np.where(alive, generator.integers(1, levels + 1, (columns, rows)), 0), codebook, 0)


def _best_of_turns(products: list[Callable[[], np.ndarray]], rounds: int) -> list[float]:
    best = [float("inf")] * len(products)
    for _ in range(rounds):
        for number, product in enumerate(products):
            start = time.perf_counter()
            product()
            best[number] = min(best[number], time.perf_counter() - start)
    return best


def _held(product: Callable[[], np.ndarray]) -> int:
    tracemalloc.start()
    try:
        product()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    sys.exit(main())
