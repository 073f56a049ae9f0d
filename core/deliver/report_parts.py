"""What the sections of the page are made of. All text is escaped here, as names and reasons come from uploads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_MOST_LISTED = 200
_LONGEST_TEXT = 300


def text(value: Any, longest: int = _LONGEST_TEXT) -> str:
    """Escaped, and cut where an upload made it too long to read."""
    whole = str(value)
    return escape(whole if len(whole) <= longest else f"{whole[:longest]}…")


def words(name: str) -> str:
    return str(name).replace("_", " ")


def number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def paragraph(content: Any) -> str:
    return f'<p class="dim">{text(content)}</p>' if content else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column is text, the others are figures."""
    # Where it is wider than the screen, it scrolls by itself and not the page.
    titles = "".join(f"<th{' class=n' if index else ''}>{text(one)}</th>" for index, one in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' if i else ''}>{text(one)}</td>" for i, one in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="table"><table><tr>{titles}</tr>{body}</table></div>'


def pictures(drawn: Iterable[str]) -> str:
    """Side by side as far as there is room, so that their letters are of one size on every screen."""
    shown = "".join(f"<div>{picture}</div>" for picture in drawn if picture)
    return f'<div class="pictures">{shown}</div>' if shown else ""


def curve(title: str, unit: str, points: Sequence[tuple[float, float]], shown: str) -> str:
    """A line through (x, y) with the extremes written at its axes, `shown` as a format; nothing for fewer than two points."""
    if len(points) < 2:
        return ""
    width, height, left, low = 360, 180, 50, 24
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    span_x, span_y = (max(xs) - min(xs)) or 1, (max(ys) - min(ys)) or 1
    line = " ".join(
        f"{left + (width - left - 8) * (x - min(xs)) / span_x:.1f},"
        f"{8 + (height - low - 8) * (max(ys) - y) / span_y:.1f}"
        for x, y in points
    )
    return (
        f'<h3>{text(title)}</h3><svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(title)}">'
        f'<path d="M{left} 8V{height - low}H{width - 8}" fill="none" stroke="var(--line)"/>'
        f'<polyline points="{line}" fill="none" stroke="var(--after)" stroke-width="1.5" stroke-linejoin="round"/>'
        f'<text x="{left - 6}" y="16" text-anchor="end">{shown.format(max(ys))}</text>'
        f'<text x="{left - 6}" y="{height - low}" text-anchor="end">{shown.format(min(ys))}</text>'
        f'<text x="{left}" y="{height - 7}">{text(unit)} {number(min(xs))}</text>'
        f'<text x="{width - 8}" y="{height - 7}" text-anchor="end">{number(max(xs))}</text></svg>'
    )


def bar(share: float, kind: str = "") -> str:
    return f'<div class="bar"><i class="{kind}" style="width:{100 * min(1.0, max(0.0, share)):.2f}%"></i></div>'


def listing(title: str, rows: Sequence[str]) -> str:
    items = "".join(f"<li>{text(row)}</li>" for row in rows[:_MOST_LISTED])
    more = f"<li>and {len(rows) - _MOST_LISTED} more, in report.json</li>" if len(rows) > _MOST_LISTED else ""
    return f"<details><summary>{text(title)}</summary><ul>{items}{more}</ul></details>"
