"""Time of the decomposition: every 3×3 layer of VGG-16, against scikit-learn's PCA layer by layer as published.

    python -m benchmarks.penni_decomposition [--kernels 5] [--repeats 5]

All in this process, on the same random weights and the threads that the environment sets; the median of the repeats,
in processor time, which other work on the machine does not change.
`PCA(n_components=d)` is what was published; which solver that means has changed: the randomised one for such shapes in 2020,
the covariance's eigenvectors from scikit-learn 1.5 on.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from sklearn.decomposition import PCA
from torch import Tensor

from core.penni.decomposition import decompose

WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
        for inputs, outputs in itertools.pairwise(WIDTHS)
    ]

    def published(solver: str) -> Callable[[Tensor], object]:
        pca = PCA(n_components=arguments.kernels, svd_solver=solver, random_state=0)
        return lambda weight: pca.fit_transform(weight.reshape(-1, 9).numpy())

    ours_s = _median_s(lambda weight: decompose(weight, arguments.kernels), weights, arguments.repeats)
    print(f"VGG-16, {len(weights)} layers, {arguments.kernels} kernels, {torch.get_num_threads()} threads")
    print(f"decompose                          {1e3 * ours_s:8.1f} ms")
    for solver in ("randomized", "full", "covariance_eigh"):
        seconds = _median_s(published(solver), weights, arguments.repeats)
        print(f"scikit-learn PCA, {solver:15s}  {1e3 * seconds:8.1f} ms   {seconds / ours_s:.1f} times as long")


def _median_s(run: Callable[[Tensor], object], weights: list[Tensor], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.process_time()
        for weight in weights:
            run(weight)
        times.append(time.process_time() - began)
    return statistics.median(times)


if __name__ == "__main__":
    main()
