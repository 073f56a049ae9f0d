"""What a person sees in the terminal: the table of a result, and numbers that read well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def count(value: float) -> str:
    """41.2 M, 269.7 k, 12: three significant places and a unit."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value:.0f}"


def size(value: float) -> str:
    """1.08 MB, 196.6 kB, 12 B: decimal units, as disks and downloads count."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value:.0f} B"


_ROWS = (
    ("parameters", "params", count),
    ("FLOPs", "flops", count),
    ("weights", "weight_bytes", size),
    ("peak activations", "peak_activation_bytes", size),
    ("memory", "memory_bytes", size),
    ("file size", "size_bytes", size),
)


def result_table(result: Mapping[str, Any], *, title: str | None = None) -> RenderableType:
    """Before and after, then each cap with its verdict."""
    before, after = result["baseline"], result["compressed"]
    table = Table(title=None if title is None else Text(title), title_justify="left", title_style="bold")
    table.add_column("")
    for heading in ("before", "after", "ratio"):
        table.add_column(heading, justify="right")
    _add_costs(table, before, after)
    if after.get("latency_ms") and before.get("latency_ms"):
        old, new = before["latency_ms"]["p50"], after["latency_ms"]["p50"]
        table.add_row("latency, p50", f"{old:.3g} ms", f"{new:.3g} ms", _ratio(old, new))
    if after.get("accuracy") is not None:
        old, new = before.get("accuracy"), after["accuracy"]
        change = "" if old is None else f"{100 * (new - old):+.2f} pt"
        table.add_row("test accuracy", "" if old is None else f"{100 * old:.2f} %", f"{100 * new:.2f} %", change)
    return Group(table, *_output_error(result), *constraint_lines(result), *_notices(result))


def _output_error(result: Mapping[str, Any]) -> list[Text]:
    """How far the outputs were from the original's before and after recovery, where no labels said more."""
    recovery = result.get("recovery") or {}
    errors = recovery.get("output_error")
    if not errors or "pruned" not in errors:
        return []
    method = recovery.get("method")
    kept = method if method in errors else "pruned"
    line = f"output error on held-out images: {errors['pruned']:.4g} as pruned"
    if kept != "pruned":
        line += f", {errors[kept]:.4g} after {kept.replace('_', ' ')}"
    return [Text(line)]


def _notices(result: Mapping[str, Any]) -> list[Text]:
    """What a delivered form lacks of the upload."""
    return [
        Text(f"note  {': '.join(filter(None, (one['artifact'], one['message'])))}")
        for one in result.get("notices") or ()
    ]


def plan_view(plan: Mapping[str, Any]) -> RenderableType:
    """A plan layer by layer, its costs against the caps, and what cannot change and why."""
    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    for heading in ("channels", "from", "to", "parameters", "MACs"):
        table.add_column(heading, justify="right")
    table.add_column("shares channels with")
    for layer in plan["layers"]:
        before, after = layer["before"], layer["after"]
        free = layer["min"] < layer["max"]
        table.add_row(
            layer["name"],
            f"{before['out']} → {after['out']}" if before["out"] != after["out"] else f"{after['out']}",
            *((str(layer["min"]), str(layer["max"])) if free else ("", "fixed")),
            f"{count(before.get('params', 0))} → {count(after.get('params', 0))}",
            f"{count(before.get('macs', 0))} → {count(after.get('macs', 0))}",
            layer["group"] if layer["group"] != layer["name"] else "",
        )
    costs = Table(box=None, pad_edge=False)
    for heading in ("", "before", "after", "ratio"):
        costs.add_column(heading, justify="right" if heading else "left")
    _add_costs(costs, plan["baseline"], plan["predicted"])
    parts: list[RenderableType] = [table, "", costs, "", *constraint_lines(plan)]
    if plan["frozen"]:
        frozen = Table("cannot change", "operator", "because", box=None, pad_edge=False)
        for entry in plan["frozen"]:
            frozen.add_row(entry["layer"], entry["operator"], entry["reason"])
        parts += ["", frozen]
    if plan["error"]:
        parts += ["", Text(plan["error"]["message"], style="bold red")]
    return Group(*parts, *([Text(plan["note"])] if plan["note"] else []))


def cap_words(metric: str, cap: Mapping[str, Any]) -> str:
    """What a cap of a request allows: `0.4×` of the original, `41.2 M`, `2 MB`, `5 ms`."""
    return f"{cap['max_ratio']:.4g}×" if cap.get("max_ratio") is not None else _shown(metric, cap["max"])


def _shown(metric: str, value: float) -> str:
    if metric == "latency_ms":
        return f"{value:.4g} ms"
    return size(value) if metric in ("memory", "size") else count(value)


def _add_costs(table: Table, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for label, key, show in _ROWS:
        if key in before and key in after:
            table.add_row(label, show(before[key]), show(after[key]), _ratio(before[key], after[key]))


def constraint_lines(result: Mapping[str, Any]) -> list[Text]:
    """One line per cap: what was allowed, what was delivered, how close."""
    lines = []
    for constraint in result["constraints"]:
        metric = constraint["metric"]
        kind = f" ({constraint['kind']})" if constraint.get("kind") else ""
        used = constraint["value"] / constraint["limit"] if constraint["limit"] else float("inf")
        verdict, style = ("✓ met", "green") if constraint["met"] else ("✗ missed", "bold red")
        line = Text(f"{verdict}  ", style=style)
        line.append(
            f"{metric}{kind}: {_shown(metric, constraint['value'])} of at most {_shown(metric, constraint['limit'])} ({used:.2%} used)",
            style="default",
        )
        lines.append(line)
    return lines


def _ratio(before: float, after: float) -> str:
    return f"{after / before:.1%}" if before else ""
