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
    for label, key, show in _ROWS:
        table.add_row(label, show(before[key]), show(after[key]), _ratio(before[key], after[key]))
    if after.get("latency_ms") and before.get("latency_ms"):
        old, new = before["latency_ms"]["p50"], after["latency_ms"]["p50"]
        table.add_row("latency, p50", f"{old:.3g} ms", f"{new:.3g} ms", _ratio(old, new))
    if after.get("accuracy") is not None:
        old, new = before.get("accuracy"), after["accuracy"]
        change = "" if old is None else f"{100 * (new - old):+.2f} pt"
        table.add_row("test accuracy", "" if old is None else f"{100 * old:.2f} %", f"{100 * new:.2f} %", change)
    return Group(table, *constraint_lines(result))


def constraint_lines(result: Mapping[str, Any]) -> list[Text]:
    """One line per cap: what was allowed, what was delivered, how close."""
    lines = []
    for constraint in result["constraints"]:
        show = size if constraint["metric"] in ("memory", "size") else count
        kind = f" ({constraint['kind']})" if constraint.get("kind") else ""
        used = constraint["value"] / constraint["limit"] if constraint["limit"] else float("inf")
        verdict, style = ("✓ met", "green") if constraint["met"] else ("✗ missed", "bold red")
        line = Text(f"{verdict}  ", style=style)
        line.append(
            f"{constraint['metric']}{kind}: {show(constraint['value'])} of at most {show(constraint['limit'])} ({used:.2%} used)",
            style="default",
        )
        lines.append(line)
    return lines


def _ratio(before: float, after: float) -> str:
    return f"{after / before:.1%}" if before else ""
