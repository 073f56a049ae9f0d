"""A plan as the service proposed it, and how to change it: widths by layer name, ready to be a job's `plan`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pennyweight.errors import JobFailed
from pennyweight.options import OptionError


class Plan(dict[str, Any]):
    """The API's Plan resource, with its widths at hand.

    plan = client.create_plan(model["id"], {"flops": {"max_ratio": 0.4}})
    client.create_job(model["id"], {"flops": {"max_ratio": 0.4}}, plan=plan.edit({"layer1.0.conv1": 9}))
    """

    @property
    def widths(self) -> dict[str, int]:
        """Output channels after, by name, of every layer whose width can be chosen."""
        return {layer["name"]: layer["after"]["out"] for layer in self["layers"] if layer["min"] < layer["max"]}

    def edit(self, widths: Mapping[str, int] | None = None, *, replan: bool = False) -> dict[str, Any]:
        """A job's `plan`: the widths proposed, with these instead. Raises ValueError for a layer that cannot be named.

        Layers that share channels with a changed one are left to the service, which gives them what fits. With
        `replan`, every other layer is: the service uses what the change frees or costs under the same caps.
        """
        changed = dict(widths or {})
        layers = {layer["name"]: layer for layer in self["layers"]}
        for name in changed:
            if name not in layers:
                raise ValueError(f"the plan has no layer {name!r}; its layers are {', '.join(layers)}")
        touched = {group for name in changed for group in _groups(layers[name])}
        kept = {} if replan else {n: out for n, out in self.widths.items() if not touched & _groups(layers[n])}
        return {"layers": [{"name": n, "out": {**kept, **changed}[n]} for n in layers if n in kept or n in changed]}


def _groups(layer: Mapping[str, Any]) -> set[str]:
    return {part for part in layer["group"].split(" + ") if part}


def read_plan(path: Path) -> dict[str, Any]:
    """A job's `plan` from a JSON file: one that `pennyweight plan -o` wrote (change a layer's `after.out`), or
    `{"layers": [{"name": …, "out": …}]}`. Raises OptionError, OSError."""
    hint = f'--plan {path}: give what `pennyweight plan -o` writes, or {{"layers": [{{"name": "conv1", "out": 9}}]}}'
    try:
        layers = json.loads(path.read_text())["layers"]
        widths = [
            {"name": layer["name"], "out": _out(layer)} for layer in layers if layer.get("min", 0) != layer.get("max")
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(f"{hint} ({type(error).__name__}: {error})") from error
    if not widths:
        raise OptionError(f"{hint}; this one names no layer")
    return {"layers": widths}


def _out(layer: Mapping[str, Any]) -> int:
    said = {layer["out"]} if "out" in layer else set()
    said |= {layer["after"]["out"]} if "after" in layer else set()
    if len(said) != 1:
        raise ValueError(f"{layer['name']} has {'two widths' if said else 'no width'}")
    return said.pop()


def made(plan: Plan) -> Plan:
    """The plan. Raises JobFailed where it could not be made."""
    if plan["status"] == "failed":
        raise JobFailed(plan["id"], plan["error"], plan)
    return plan
