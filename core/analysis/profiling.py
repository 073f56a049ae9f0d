"""Profile: what each layer of a network costs, and the network as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.fx import Node

from core.analysis.buffer_model import BYTES_PER_ELEMENT
from core.analysis.rows import CostRow, cost_rows
from core.analysis.schema import operator_name
from core.analysis.trace import layer_name, trace_network
from core.budget import Costs
from core.network import Network, TensorMeta


@dataclass(frozen=True)
class LayerCost:
    """One call that multiplies or reads tensors. output_shape without the batch axis; activation_bytes at batch 1."""

    name: str
    type: str
    params: int
    macs: int
    activation_bytes: int
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """Exact costs of a network, in total and layer by layer in execution order."""

    costs: Costs
    layers: tuple[LayerCost, ...]


def profile(network: Network) -> Profile:
    """Costs at batch 1 from shapes alone: no tensor is computed. A parameter counts in the first layer that reads it."""
    trace = trace_network(network)
    rows = cost_rows(network, trace)
    costs = Costs(
        params=_total(rows.params),
        macs=_total(rows.macs),
        weight_bytes=_total(rows.weight_bytes),
        peak_activation_bytes=rows.peak_bytes,
    )
    macs: dict[str, int] = {}
    for row in trace.mac_rows:
        macs[row.node] = macs.get(row.node, 0) + CostRow(row.constant, row.vectors).size
    seen: set[str] = set()
    layers = []
    for node in network.graph.nodes:
        meta = node.meta.get("value")
        if node.op != "call_function" or not isinstance(meta, TensorMeta):
            continue
        read = [one.target for one in node.all_input_nodes if one.op == "get_attr"]
        if node.name in macs or read:
            layers.append(
                _layer_cost(network, node, macs.get(node.name, 0), [name for name in read if name not in seen])
            )
            seen.update(read)
    return Profile(costs, tuple(layers))


def _layer_cost(network: Network, node: Node, macs: int, read: list[str]) -> LayerCost:
    meta = node.meta["value"]
    parameters = [name for name in read if name in network.parameter_names]
    return LayerCost(
        name=layer_name(node),
        type=operator_name(node.target),
        params=sum(network.tensors[name].numel() for name in parameters),
        macs=macs,
        activation_bytes=BYTES_PER_ELEMENT * math.prod(meta.shape),
        output_shape=meta.shape[1:],
    )


def _total(rows: list[CostRow]) -> int:
    return sum(row.size for row in rows)
