"""Chains of low rank in a whole job: a small network of MobileNetV2's blocks, whose work is in 1×1 convolutions.

    python -m benchmarks.penni_low_rank [--ratio 0.5]

It learns scikit-learn's digits in a few seconds and then goes through a job with the method penni and without a gradient
step. Accuracy is on the 360 test images, which decide nothing; the guard's figures are on validation images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from core.budget import Budget, Cap
from core.deliver.pt2_file import write_pt2
from core.engine import CompressionRequest, compress
from tests.core.penni_cases import mobile_network
from tests.core.recovery_cases import save_digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the MACs")
    ratio = parser.parse_args().ratio
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pt2(mobile_network(), folder / "mobile.pt2")
        request = CompressionRequest(
            folder / "mobile.pt2",
            Budget((Cap("macs", max_ratio=ratio),)),
            methods=({"type": "penni"},),
            dataset_path=save_digits(folder),
            recovery={"epochs": 0},
            device="cpu",
        )
        result = compress(request, folder / "out")
    before, after, report = result["baseline"], result["compressed"], result["recovery"]["rewriting"]
    print(f"{report['low_rank_layers']} of {len(report['forms'])} layers with shared kernels are chains of low rank.")
    print(f"MACs {before['macs']:,} → {after['macs']:,}")
    print(f"Test accuracy {before['accuracy']:.2%} → {after['accuracy']:.2%}")
    guard = report["guard"]
    print(f"On validation images: fitted {guard['fitted']:.2%}, by weights alone {guard['weights_alone']:.2%}.")


if __name__ == "__main__":
    main()
