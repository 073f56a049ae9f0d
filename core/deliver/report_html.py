"""The result as a page: one self-contained file with the caps, the layers before and after, curves and provenance.

No script, no font, no address: everything is in the file, which a content security policy of its own enforces. Names and
reasons come from uploads, so all text is escaped. The page shows what `report.json` says and computes nothing new.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from core.deliver.report_complexity import complexity_html
from core.deliver.report_encoding import encoding_html

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2024;--dim:#60646c;--line:#e0e1e6;--paper:#fff;--card:#f7f8fa;--before:#c3c8d1;
--after:#2f6fde;--ok:#187a43;--bad:#c62a2f}
@media(prefers-color-scheme:dark){:root{--ink:#edeef0;--dim:#a4a9b3;--line:#363a3f;--paper:#131517;--card:#1c1f22;
--before:#565d68;--after:#6aa1ff;--ok:#4cc38a;--bad:#ff7b7f}}
*{box-sizing:border-box}body{margin:0 auto;max-width:72rem;padding:1.5rem 1rem 4rem;background:var(--paper);
color:var(--ink);font:15px/1.5 system-ui,sans-serif}h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
h3{font-size:.95rem;margin:1.2rem 0 .3rem;color:var(--dim)}p{margin:.4rem 0}.dim{color:var(--dim)}.ok{color:var(--ok)}
.bad{color:var(--bad)}.table{overflow-x:auto;margin:.2rem 0 1rem}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.3rem .9rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--dim);font-size:.85rem}td:last-child,th:last-child{padding-right:0}.pairs td{
overflow-wrap:anywhere}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.cap{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem .9rem;margin:.5rem 0}
.cap div:first-child{display:flex;justify-content:space-between;gap:1rem;flex-wrap:wrap}.bar{position:relative;height:9px;
border-radius:5px;background:var(--line);overflow:hidden;margin-top:.35rem}.bar i{position:absolute;inset:0 auto 0 0;
background:var(--after);border-radius:5px}.bar i.b{background:var(--before)}.layer{display:grid;gap:.1rem 1rem;
grid-template-columns:minmax(9rem,2fr) 6rem 3fr 3fr;padding:.3rem 0;border-bottom:1px solid var(--line);align-items:center;
font-size:.88rem}.layer span{overflow-wrap:anywhere}.layer .w{text-align:right;font-variant-numeric:tabular-nums}
.layer small{color:var(--dim);font-variant-numeric:tabular-nums}.layer .bar{margin-top:.1rem;height:7px}
.pictures{display:grid;gap:.2rem 2rem;grid-template-columns:repeat(auto-fit,minmax(min(18rem,100%),1fr))}
.pictures div{max-width:30rem}svg{width:100%;height:auto;display:block}svg text{fill:var(--dim);font:12px system-ui,sans-serif}
details{margin:.5rem 0}summary{cursor:pointer}
@media(max-width:40rem){th,td{padding-right:.5rem;font-size:.9rem}.layer{grid-template-columns:1fr 1fr}.layer>span:first-child{font-weight:600}}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_COSTS = {
    "params": "Parameters",
    "macs": "MACs",
    "flops": "FLOPs",
    "weight_bytes": "Weights (bytes)",
    "peak_activation_bytes": "Peak activations (bytes)",
    "memory_bytes": "Memory (bytes)",
    "size_bytes": "File (bytes)",
}
_MOST_LISTED = 200
_LONGEST_TEXT, _LONGEST_NOTICE = 300, 2000
_EPOCHS_SHOWN = 60
_EPOCH_FIGURES = {
    "loss": "{:.4g}",
    "train_accuracy": "{:.2%}",
    "validation_accuracy": "{:.2%}",
    "output_error": "{:.4g}",
    "learning_rate": "{:.3g}",
    "images_per_s": "{:,.0f}",
}


def report_html(result: Mapping[str, Any]) -> str:
    """The page of one `result` object (API.md)."""
    met = bool(result["met"])
    verdict = "Every cap is met" if met else "Not every cap is met"
    sections = [
        _section("Budget", "".join(map(_cap, result["constraints"])) + _paragraph(result.get("plan", {}).get("note"))),
        _section("Before and after", _costs(result)),
        _section("Recovery", _recovery(result.get("recovery") or {})),
        _section("Complexity modes", _complexity(result)),
        _section("Encoding", encoding_html(result.get("encoding"), result.get("int8"), _table, _paragraph)),
        _section("Proof", _equivalence(result.get("equivalence"))),
        _section("Layers", _layers(result["layers"])),
        _section("What had to stay, and what was changed", _reasons(result)),
        _section("Files", _files(result["artifacts"]) + "".join(map(_notice, result.get("notices", ())))),
        _section("Provenance", _pairs(result["provenance"])),
    ]
    name = result["provenance"].get("architecture") or "Network"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_text(name)}: compression report</title><style>{_STYLE}</style></head><body>"
        f"<header><h1>{_text(name)}</h1>"
        f'<p class="{"ok" if met else "bad"}">{"✓" if met else "✗"} {verdict}</p></header>'
        f"<main>{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>" if body else ""


def _paragraph(text: Any) -> str:
    return f'<p class="dim">{_text(text)}</p>' if text else ""


def _cap(constraint: Mapping[str, Any]) -> str:
    """Limit, measured value, and the share of the limit that is used."""
    kind = f" ({constraint['kind']})" if constraint.get("kind") else ""
    value, limit = constraint["value"], constraint["limit"]
    share = value / limit if limit else 0.0
    state, mark = ("ok", "✓") if constraint["met"] else ("bad", "✗")
    return (
        f'<div class="cap"><div><b>{_text(constraint["metric"] + kind)}</b>'
        f'<span><span class="{state}">{mark}</span> {_number(value)} of at most {_number(limit)}, '
        f"{int(share * 1e4) / 100:.2f} %</span></div>{_bar(share)}</div>"
    )


def _bar(share: float, kind: str = "") -> str:
    return f'<div class="bar"><i class="{kind}" style="width:{100 * min(1.0, max(0.0, share)):.2f}%"></i></div>'


def _costs(result: Mapping[str, Any]) -> str:
    before, after = result["baseline"], result["compressed"]
    rows = [
        (
            title,
            _number(before[name]),
            _number(after[name]),
            f"{after[name] / before[name]:.1%}" if before[name] else "",
        )
        for name, title in _COSTS.items()
        if before.get(name) is not None and after.get(name) is not None
    ]
    if before.get("accuracy") is not None and after.get("accuracy") is not None:
        change = after["accuracy"] - before["accuracy"]
        rows.append(
            ("Accuracy (test)", f"{before['accuracy']:.2%}", f"{after['accuracy']:.2%}", f"{100 * change:+.2f} points")
        )
    if before.get("latency_ms") and after.get("latency_ms"):
        first, second = before["latency_ms"]["p50"], after["latency_ms"]["p50"]
        rows.append(("Latency p50 (ms)", f"{first:.3g}", f"{second:.3g}", f"{second / first:.1%}" if first else ""))
    return _table(("", "original", "compressed", "ratio"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column is text, the others are figures."""
    # Where it is wider than the screen, it scrolls by itself and not the page.
    titles = "".join(f"<th{' class=n' if index else ''}>{_text(one)}</th>" for index, one in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' if i else ''}>{_text(one)}</td>" for i, one in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="table"><table><tr>{titles}</tr>{body}</table></div>'


def _recovery(recovery: Mapping[str, Any]) -> str:
    parts = [_paragraph(f"Method: {_words(recovery['method'])}") if "method" in recovery else ""]
    accuracy = recovery.get("accuracy")
    if accuracy:
        rows = [(name, *(f"{accuracy[name][split]:.2%}" for split in ("val", "test"))) for name in accuracy]
        parts.append(_table(("accuracy", "validation", "test"), rows))
    stages = recovery.get("validation_accuracy")
    if stages:
        rows = [(_words(name), f"{value:.2%}") for name, value in stages.items()]
        parts.append(_table(("stage", "validation accuracy"), rows))
    errors = recovery.get("output_error")
    if errors:
        rows = [(_words(name), f"{value:.4g}") for name, value in errors.items()]
        parts.append(_table(("stage", "output error against the original"), rows))
    training = recovery.get("training") or {}
    parts += [_paragraph(line) for line in (_training(training), *training.get("notes", ()))]
    curves = [_curve("Training loss", "step", [tuple(point) for point in training.get("curve", ())], "{:.3g}")]
    epochs = training.get("epoch_records", ())
    for title, key, shown in (
        ("Train accuracy", "train_accuracy", "{:.1%}"),
        ("Validation accuracy", "validation_accuracy", "{:.1%}"),
        ("Output error", "output_error", "{:.3g}"),
    ):
        points = [(epoch["epoch"], epoch[key]) for epoch in epochs if epoch[key] is not None]
        curves.append(_curve(title, "epoch", points, shown))
    parts.append(_pictures(curves))
    parts.append(_epochs(epochs))
    return "".join(parts)


def _training(training: Mapping[str, Any]) -> str:
    """How it was trained, in one line."""
    if not training.get("steps"):
        return ""
    processes = training.get("processes", 1)
    said = [
        f"{_number(training['epochs'])} epochs of batches of {training['batch_size']}",
        f"{training['optimizer']} at {training['learning_rate']:.3g}, {_words(training['schedule'])}",
        f"{training['precision']}, {_words(training.get('layout', 'contiguous'))}",
        f"{processes} processes" if processes > 1 else "",
        "torch.compile" if training.get("compiled") else "",
        "gone on from a checkpoint" if training.get("resumed") else "",
    ]
    return "Training: " + "; ".join(filter(None, said)) + "."


def _complexity(result: Mapping[str, Any]) -> str:
    drawn = (result.get("recovery") or {}).get("complexity")
    return complexity_html(drawn, result["baseline"], _table, _paragraph, _pictures)


def _epochs(epochs: Sequence[Mapping[str, Any]]) -> str:
    """The last epochs, one row each."""
    if not epochs:
        return ""
    names = [name for name in _EPOCH_FIGURES if epochs[0][name] is not None]
    rows = [(str(epoch["epoch"]), *(_EPOCH_FIGURES[name].format(epoch[name]) for name in names)) for epoch in epochs]
    table = _table(("epoch", *map(_words, names)), rows[-_EPOCHS_SHOWN:])
    return f"<details><summary>Epochs ({len(rows)})</summary>{table}</details>"


def _pictures(pictures: Iterable[str]) -> str:
    """Side by side as far as there is room, so that their letters are of one size on every screen."""
    shown = "".join(f"<div>{picture}</div>" for picture in pictures if picture)
    return f'<div class="pictures">{shown}</div>' if shown else ""


def _curve(title: str, unit: str, points: Sequence[tuple[float, float]], shown: str) -> str:
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
        f'<h3>{_text(title)}</h3><svg viewBox="0 0 {width} {height}" role="img" aria-label="{_text(title)}">'
        f'<path d="M{left} 8V{height - low}H{width - 8}" fill="none" stroke="var(--line)"/>'
        f'<polyline points="{line}" fill="none" stroke="var(--after)" stroke-width="1.5" stroke-linejoin="round"/>'
        f'<text x="{left - 6}" y="16" text-anchor="end">{shown.format(max(ys))}</text>'
        f'<text x="{left - 6}" y="{height - low}" text-anchor="end">{shown.format(min(ys))}</text>'
        f'<text x="{left}" y="{height - 7}">{_text(unit)} {_number(min(xs))}</text>'
        f'<text x="{width - 8}" y="{height - 7}" text-anchor="end">{_number(max(xs))}</text></svg>'
    )


def _equivalence(equivalence: Mapping[str, Any] | None) -> str:
    if equivalence is None:
        return ""
    passed = equivalence["passed"]
    text = (
        f"The pruned network {'agrees' if passed else 'does not agree'} with its masked reference: largest relative "
        f"error {equivalence['max_relative_error']:.1e} over {equivalence.get('checked', 0)} tensors, in float64, before "
        "recovery."
    )
    listed = [
        _listing(f"{name} ({len(equivalence[name])})", equivalence[name])
        for name in ("insensitive", "unproven")
        if equivalence.get(name)
    ]
    return f'<p class="{"ok" if passed else "bad"}">{_text(text)}</p>{"".join(listed)}'


def _layers(layers: Sequence[Mapping[str, Any]]) -> str:
    """Every layer in execution order, under the first part of its name, with bars relative to the largest layer."""
    most = {
        name: max((max(one["before"][name], one["after"][name]) for one in layers), default=0) or 1
        for name in ("params", "macs")
    }
    parts = [_paragraph("Grey: original; blue: compressed. Bars are relative to the largest layer.")]
    for title, members in groupby(layers, key=lambda one: one["name"].split(".")[0]):
        rows = "".join(_layer(one, most) for one in members)
        parts.append(f"<h3>{_text(title)}</h3>{rows}")
    return "".join(parts)


def _layer(layer: Mapping[str, Any], most: Mapping[str, int]) -> str:
    before, after = layer["before"], layer["after"]
    bars = "".join(
        f"<div><small>{_number(before[name])} → {_number(after[name])} {title}</small>"
        f"{_bar(before[name] / most[name], 'b')}{_bar(after[name] / most[name])}</div>"
        for name, title in (("params", "params"), ("macs", "MACs"))
        if before[name] or after[name]
    )
    return (
        f'<div class="layer"><span>{_text(layer["name"])}</span>'
        f'<span class="w">{_number(before["out"])} → {_number(after["out"])}</span>{bars}</div>'
    )


def _reasons(result: Mapping[str, Any]) -> str:
    def lines(rows: Sequence[Mapping[str, str]]) -> list[str]:
        return [f"{row['layer']} ({row['operator']}): {row['reason']}" for row in rows]

    lists = {
        "Kept whole": lines(result["frozen"]),
        "Run over the surviving channels": lines(result.get("changed", ())),
        "Folded before pruning": list(result.get("folded", ())),
    }
    return "".join(_listing(f"{title} ({len(rows)})", rows) for title, rows in lists.items() if rows)


def _listing(title: str, rows: Sequence[str]) -> str:
    items = "".join(f"<li>{_text(row)}</li>" for row in rows[:_MOST_LISTED])
    more = f"<li>and {len(rows) - _MOST_LISTED} more, in report.json</li>" if len(rows) > _MOST_LISTED else ""
    return f"<details><summary>{_text(title)}</summary><ul>{items}{more}</ul></details>"


def _files(artifacts: Sequence[Mapping[str, Any]]) -> str:
    return _table(
        ("file", "bytes", "sha256"), [(one["name"], _number(one["size"]), one["sha256"][:16]) for one in artifacts]
    )


def _notice(notice: Mapping[str, str]) -> str:
    return f"<p>{_text(': '.join(filter(None, (notice['artifact'], notice['message']))), longest=_LONGEST_NOTICE)}</p>"


def _pairs(values: Mapping[str, Any]) -> str:
    rows = [(name.replace("_", " "), value) for name, value in values.items() if value not in (None, {}, [])]
    body = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows)
    return f'<div class="table"><table class="pairs">{body}</table></div>'


def _words(name: str) -> str:
    return str(name).replace("_", " ")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _text(value: Any, longest: int = _LONGEST_TEXT) -> str:
    """Escaped, and cut where an upload made it too long to read."""
    text = str(value)
    return escape(text if len(text) <= longest else f"{text[:longest]}…")
