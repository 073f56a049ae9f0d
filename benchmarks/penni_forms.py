"""How fast the forms of a layer run: dense, and two stages with and without columns in blocks of 16.

    python -m benchmarks.penni_forms

ONNX Runtime on one thread, batch 1: a 1×1 convolution and a ReLU, then the layer, so that it gets its input as inside a
network. Columns are gathered channels, one depthwise map each; `multiplier` makes several maps of every channel instead.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from core.analysis import profile
from core.deliver.latency import measure_latencies
from core.deliver.onnx_file import write_onnx
from core.network import Network

SHAPES = ((16, 32), (64, 8), (256, 14))


class Layer(nn.Module):
    """channels → channels, 3×3, in two stages of `columns` maps; dense with none."""

    def __init__(self, channels: int, columns: int, *, gathers: bool) -> None:
        super().__init__()
        self.before = nn.Conv2d(channels, channels, 1)
        self.gathers = gathers
        self.register_buffer("channels", torch.arange(columns) % channels)
        if columns:
            groups = columns if gathers else channels
            maps = nn.Conv2d(groups, columns, 3, padding=1, groups=groups, bias=False)
            self.layer = nn.Sequential(maps, nn.Conv2d(columns, channels, 1))
        else:
            self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.before(x))
        return self.layer(x.index_select(1, self.channels) if self.gathers else x)


def main() -> None:
    torch.manual_seed(0)
    table = Table("channels", "size", "form", "columns", "MACs", "latency")
    for channels, size in SHAPES:
        forms = {
            "dense": Layer(channels, 0, gathers=False),
            "two stages, blocks of 16": Layer(channels, 3 * channels, gathers=True),
            "two stages, 3 columns more": Layer(channels, 3 * channels + 3, gathers=True),
            "two stages, multiplier": Layer(channels, 3 * channels, gathers=False),
        }
        networks = {name: Network.from_module(form, {"x": (channels, size, size)}) for name, form in forms.items()}
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for index, network in enumerate(networks.values()):
                files.append((Path(folder) / f"{index}.onnx", network))
                write_onnx(network, files[-1][0])
            latencies = measure_latencies(files)
        for (name, network), latency in zip(networks.items(), latencies, strict=True):
            columns = len(forms[name].channels)
            macs = profile(network).costs.macs
            table.add_row(str(channels), str(size), name, str(columns or ""), f"{macs:,}", f"{latency.p50:.3f} ms")
    Console(highlight=False, width=110).print(table)


if __name__ == "__main__":
    main()
