"""Tables of the sweep: one line per network, and every goal beside what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.zoo import Row

WIDTH = 170
console = Console(highlight=False, width=WIDTH)

MOST_BELOW, USUALLY_BELOW = 0.01, 0.002
REFUSED_WITHIN_S = 5.0


def count(value: float | None) -> str:
    """41.2 G, 269.7 M."""
    if value is None:
        return ""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:g}"


def seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def percent(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}%}"


def passed(value: bool | None) -> Text:
    if value is None:
        return Text("–", style="dim")
    return Text("yes", style="green") if value else Text("NO", style="bold red")


def network_table(rows: Sequence[Row], *, rival: bool) -> Table:
    """One line per network; with `rival`, Torch-Pruning's beside it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("network", no_wrap=True)
    table.add_column("result")
    for heading in ("MACs", "left", "below cap", "params", "thinnest", "error", "export", "prune", "verify"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("ONNX", "reload"):
        table.add_column(heading, justify="center")
    if rival:
        table.add_column("Torch-Pruning", justify="left", style="dim")
        table.add_column("left", justify="right", style="dim")
        table.add_column("prune", justify="right", style="dim")
    for row in rows:
        cells: list[str | Text] = [Text(row["name"]), _result(row), *_numbers(row)]
        cells += [passed(row.get("onnx")), passed(row.get("reload"))]
        if rival:
            other = row.get("torch_pruning") or {}
            cells += [other.get("status", ""), percent(other.get("ratio"), 1), seconds(other.get("seconds"))]
        table.add_row(*cells)
    return table


def _result(row: Row) -> Text:
    if row["status"] != "pruned":
        return Text(row["status"], style="yellow" if row["status"] == "refused" else "bold red")
    marks = [mark for mark, there in (("survivors", row["level"] != "strict"), ("folded", row["folded"])) if there]
    return Text("pruned", style="green").append("".join(f" {mark}" for mark in marks), style="cyan")


def _numbers(row: Row) -> list[str]:
    before, after = row.get("before"), row.get("after")
    ratio = [after[key] / before[key] if after else None for key in ("macs", "params")]
    error = row.get("verify_error")
    return [
        count(before["macs"]) if before else "",
        percent(ratio[0], 2),
        percent(row.get("below")),
        percent(ratio[1], 1),
        str(row.get("smallest_width") or ""),
        "" if error is None else f"{error:.0e}",
        *(seconds(row.get(stage)) for stage in ("export_s", "prune_s", "verify_s")),
    ]


def problem_lines(rows: Sequence[Row]) -> list[Text]:
    """What every network that was not pruned, or has a failed check, says of itself."""
    lines = []
    for row in rows:
        found = [row.get("error"), row.get("onnx_problem"), row.get("reload_problem")]
        if row.get("verified") is False:
            found.append(f"masked reference: {row['problem']}")
        if row.get("macs_exact") is False:
            found.append(
                f"MACs: predicted {row['before']['macs']:,} → {row['after']['macs']:,}, counted {row['counted_macs']}"
            )
        if row.get("faults"):
            found.append(f"{row['faults']} label rules raised")
        if row.get("below", 0) > MOST_BELOW:
            found.append(f"{row['below']:.2%} below its cap: {row['note']}")
        found += row.get("frozen", []) if row["status"] == "refused" else []
        lines += [Text.assemble((row["name"], "bold"), f"  {problem}") for problem in found if problem]
    return lines


@dataclass(frozen=True)
class Goal:
    """One line of the summary; reached: None where nothing was measured."""

    name: str
    wanted: str
    measured: str
    reached: bool | None


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Every goal of the sweep beside what was measured."""
    pruned = [row for row in rows if row["status"] == "pruned"]
    landed = [row["below"] for row in rows if "below" in row]
    refused = [row for row in rows if row["status"] == "refused"]
    slow = [row for row in refused if row.get("refused_after_s", 0.0) >= REFUSED_WITHIN_S]
    needed = math.ceil(len(rows) * 141 / 142)
    found = [
        Goal("pruned, every check passed", f"≥ {needed} of {len(rows)}", str(len(pruned)), len(pruned) >= needed),
        _none("refused after 5 s or later", slow, f"0 of {len(refused)} refused"),
        _none("crashed or failed", [row for row in rows if row["status"] in ("crashed", "failed")]),
        _none("hung", [row for row in rows if row["status"] == "hung"]),
        _none("above a cap", [row for row in rows if not all(cap["met"] for cap in row.get("constraints", []))]),
    ]
    if landed:
        share = sum(below <= USUALLY_BELOW for below in landed) / len(landed)
        found += [
            Goal("farthest below the cap", "≤ 1 %", percent(max(landed)), max(landed) <= MOST_BELOW),
            Goal("within 0.2 % below the cap", "≥ 95 %", percent(share, 1), share >= 0.95),
            _none("predicted MACs ≠ flop_counter / 2", [row for row in rows if row.get("macs_exact") is False]),
            _none("with a layer of ≤ 2 channels left", [row for row in rows if row.get("narrow_layers")]),
        ]
        found += _times([row["prune_s"] for row in rows if "prune_s" in row])
    return found + _against_rival(rows)


def _none(name: str, rows: Sequence[Row], wanted: str = "0") -> Goal:
    return Goal(name, wanted, str(len(rows)), not rows)


def _times(times: Sequence[float]) -> list[Goal]:
    ordered = sorted(times)
    p90 = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
    median = statistics.median(ordered)
    return [
        Goal("analyse + plan + apply, median", "≤ 0.5 s", f"{median:.2f} s", median <= 0.5),
        Goal("analyse + plan + apply, p90", "≤ 1.5 s", f"{p90:.2f} s", p90 <= 1.5),
    ]


def _against_rival(rows: Sequence[Row]) -> list[Goal]:
    tried = [row for row in rows if row.get("torch_pruning")]
    both = [row for row in tried if row["torch_pruning"].get("status") == "pruned" and row["status"] == "pruned"]
    if not both:
        return []
    ours, theirs = (sum(pick(row) for row in both) for pick in (_our_seconds, _their_seconds))
    each = statistics.median(_our_seconds(row) / _their_seconds(row) for row in both)
    them = sum(row["torch_pruning"].get("status") == "pruned" for row in tried)
    distances = [row["torch_pruning"]["own_ratio"] for row in both]
    budget = max(cap["limit"] / row["before"]["macs"] for row in both for cap in row["constraints"][:1])
    return [
        Goal("time against Torch-Pruning, median network", "≤ 0.2", f"{each:.2f}", each <= 0.2),
        Goal("time against Torch-Pruning, all networks", "≤ 0.2", f"{ours / theirs:.2f}", ours / theirs <= 0.2),
        Goal("pruned by Torch-Pruning", "–", f"{them} of {len(tried)}", None),
        Goal("its distance below the cap, median", "–", percent(1 - statistics.median(distances) / budget, 1), None),
    ]


def _our_seconds(row: Row) -> float:
    return row["prune_s"]


def _their_seconds(row: Row) -> float:
    return row["torch_pruning"]["seconds"]


def goal_table(found: Sequence[Goal]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("goal")
    for heading in ("wanted", "measured"):
        table.add_column(heading, justify="right")
    table.add_column("reached", justify="center")
    for goal in found:
        table.add_row(goal.name, goal.wanted, goal.measured, passed(goal.reached))
    return table


def print_report(rows: Sequence[Row], table: Table, found: Sequence[Goal]) -> None:
    """The table, what went wrong, and the goals."""
    console.print(table)
    lines = problem_lines(rows)
    if lines:
        console.print("\n[bold]What was refused or went wrong[/bold]")
    for line in lines:
        console.print(line)
    console.print()
    console.print(goal_table(found))
