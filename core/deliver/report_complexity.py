"""The page's picture of the three complexity modes at one budget: what each keeps, and how exact it still is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from core.deliver import report_parts as page

_NAMES = {"params": "parameter-aware", "flops": "FLOPs-aware", "memory": "memory-aware"}
_FIGURES = {"params": "Parameters", "macs": "MACs", "memory_bytes": "Memory (bytes)"}
_WIDTH, _ROW = 360, 40


def complexity_html(complexity: Mapping[str, Any] | None, baseline: Mapping[str, Any]) -> str:
    """One panel per figure, a bar per mode; the spread over the seeds is a line across the bar's end.

    complexity: as `core.draws` describes it.
    """
    if not complexity:
        return ""
    modes, delivered = complexity["modes"], complexity["mode"]
    several = any(mode["seeds"] > 1 for mode in modes)
    parts = [
        page.paragraph(
            f"Widths are drawn by lot, weighted by each layer's share of the complexity; delivered: {_NAMES[delivered]}. "
            "All modes are held to the same caps, and bars are shares of the original."
            + (" The line at a bar's end is the standard deviation over the seeds." if several else "")
        )
    ]
    panels = []
    for figure, title in _FIGURES.items():
        if baseline.get(figure):
            rows = [_bar(mode, figure, baseline[figure], lambda value: f"{value:,.0f}") for mode in modes]
            panels.append(_panel(title, rows, delivered))
    measured = [mode for mode in modes if mode["accuracy"] is not None]
    if measured and (len(measured) > 1 or several):
        rows = [_bar(mode, "accuracy", 1.0, lambda value: f"{value:.2%}") for mode in measured]
        panels.append(_panel("Accuracy (test)", rows, delivered))
    parts.append(page.pictures(panels))
    if len(measured) > 1 or several:
        parts.append(_draws(complexity["draws"]))
    if complexity.get("missed"):
        names = [f"{_NAMES[one['mode']]} with seed {one['seed']}" for one in complexity["missed"]]
        parts.append(page.paragraph(f"Not within the caps: {', '.join(names)}."))
    return "".join(parts)


def _bar(
    mode: Mapping[str, Any], figure: str, whole: float, shown: Callable[[float], str]
) -> tuple[str, float, float | None, str]:
    """(mode, share, spread of the share, label)."""
    value, spread = mode[figure], mode[f"{figure}_spread"]
    label = shown(value) if spread is None else f"{shown(value)} ± {shown(spread)}"
    return mode["mode"], value / whole, None if spread is None else spread / whole, label


def _panel(title: str, rows: Sequence[tuple[str, float, float | None, str]], delivered: str) -> str:
    bars = []
    for index, (mode, share, spread, label) in enumerate(rows):
        top = _ROW * index
        end = _WIDTH * min(1.0, max(0.0, share))
        color = "--after" if mode == delivered else "--before"
        bars.append(
            f'<text x="0" y="{top + 13}">{escape(_NAMES[mode])}</text>'
            f'<text x="{_WIDTH}" y="{top + 13}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="0" y="{top + 19}" width="{_WIDTH}" height="12" rx="4" fill="var(--line)"/>'
            f'<rect x="0" y="{top + 19}" width="{end:.1f}" height="12" rx="4" fill="var({color})"/>'
        )
        if spread:
            low, high = (_WIDTH * min(1.0, max(0.0, share + sign * spread)) for sign in (-1, 1))
            bars.append(
                f'<path d="M{low:.1f} {top + 25}H{high:.1f}M{low:.1f} {top + 21}v8M{high:.1f} {top + 21}v8" fill="none" '
                'stroke="var(--ink)" stroke-width="1.5"/>'
            )
    said = "; ".join(f"{_NAMES[mode]} {label}" for mode, _, _, label in rows)
    return (
        f'<h3>{escape(title)}</h3><svg viewBox="0 0 {_WIDTH} {_ROW * len(rows)}" role="img" '
        f'aria-label="{escape(f"{title}: {said}")}">{"".join(bars)}</svg>'
    )


def _draws(draws: Sequence[Mapping[str, Any]]) -> str:
    errors = any(draw["output_error"] is not None for draw in draws)
    head = ("mode", "seed", *_FIGURES.values(), "output error" if errors else "accuracy (test)", "delivered")
    rows = []
    for draw in draws:
        score = draw["output_error"] if errors else draw["accuracy"]
        shown = "only planned" if score is None else f"{score:.4g}" if errors else f"{score:.2%}"
        costs = [f"{draw[name]:,}" for name in _FIGURES]
        rows.append((_NAMES[draw["mode"]], str(draw["seed"]), *costs, shown, "✓" if draw["delivered"] else ""))
    return page.table(head, rows)
