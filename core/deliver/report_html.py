"""The result as a page: one self-contained file with the caps, the layers before and after, curves and provenance.

No script, no font, no address: everything is in the file, which a content security policy of its own enforces. Names and
reasons come from uploads, so all text is escaped. The page shows what `report.json` says and computes nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from core.deliver import report_parts as page
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
_LONGEST_NOTICE = 2000
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
    recovery = result.get("recovery") or {}
    verdict = "Every cap is met" if met else "Not every cap is met"
    sections = [
        _section(
            "Budget", "".join(map(_cap, result["constraints"])) + page.paragraph(result.get("plan", {}).get("note"))
        ),
        _section("Before and after", _costs(result)),
        _section("Recovery", _recovery(recovery)),
        _section("Complexity modes", complexity_html(recovery.get("complexity"), result["baseline"])),
        _section("Encoding", encoding_html(result.get("encoding"), result.get("int8"))),
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
        f"<title>{page.text(name)}: compression report</title><style>{_STYLE}</style></head><body>"
        f"<header><h1>{page.text(name)}</h1>"
        f'<p class="{"ok" if met else "bad"}">{"✓" if met else "✗"} {verdict}</p></header>'
        f"<main>{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{page.text(title)}</h2>{body}</section>" if body else ""


def _cap(constraint: Mapping[str, Any]) -> str:
    """Limit, measured value, and the share of the limit that is used."""
    kind = f" ({constraint['kind']})" if constraint.get("kind") else ""
    value, limit = constraint["value"], constraint["limit"]
    share = value / limit if limit else 0.0
    state, mark = ("ok", "✓") if constraint["met"] else ("bad", "✗")
    return (
        f'<div class="cap"><div><b>{page.text(constraint["metric"] + kind)}</b>'
        f'<span><span class="{state}">{mark}</span> {page.number(value)} of at most {page.number(limit)}, '
        f"{int(share * 1e4) / 100:.2f} %</span></div>{page.bar(share)}</div>"
    )


def _costs(result: Mapping[str, Any]) -> str:
    before, after = result["baseline"], result["compressed"]
    rows = [
        (
            title,
            page.number(before[name]),
            page.number(after[name]),
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
    return page.table(("", "original", "compressed", "ratio"), rows)


def _recovery(recovery: Mapping[str, Any]) -> str:
    parts = [page.paragraph(f"Method: {page.words(recovery['method'])}") if "method" in recovery else ""]
    accuracy = recovery.get("accuracy")
    if accuracy:
        rows = [(name, *(f"{accuracy[name][split]:.2%}" for split in ("val", "test"))) for name in accuracy]
        parts.append(page.table(("accuracy", "validation", "test"), rows))
    stages = recovery.get("validation_accuracy")
    if stages:
        rows = [(page.words(name), f"{value:.2%}") for name, value in stages.items()]
        parts.append(page.table(("stage", "validation accuracy"), rows))
    errors = recovery.get("output_error")
    if errors:
        rows = [(page.words(name), f"{value:.4g}") for name, value in errors.items()]
        parts.append(page.table(("stage", "output error against the original"), rows))
    training = recovery.get("training") or {}
    parts += [page.paragraph(line) for line in (_training(training), *training.get("notes", ()))]
    curves = [page.curve("Training loss", "step", [tuple(point) for point in training.get("curve", ())], "{:.3g}")]
    epochs = training.get("epoch_records", ())
    for title, key, shown in (
        ("Train accuracy", "train_accuracy", "{:.1%}"),
        ("Validation accuracy", "validation_accuracy", "{:.1%}"),
        ("Output error", "output_error", "{:.3g}"),
    ):
        points = [(epoch["epoch"], epoch[key]) for epoch in epochs if epoch[key] is not None]
        curves.append(page.curve(title, "epoch", points, shown))
    parts.append(page.pictures(curves))
    parts.append(_epochs(epochs))
    return "".join(parts)


def _training(training: Mapping[str, Any]) -> str:
    """How it was trained, in one line."""
    if not training.get("steps"):
        return ""
    processes = training.get("processes", 1)
    said = [
        f"{page.number(training['epochs'])} epochs of batches of {training['batch_size']}",
        f"{training['optimizer']} at {training['learning_rate']:.3g}, {page.words(training['schedule'])}",
        f"{training['precision']}, {page.words(training.get('layout', 'contiguous'))}",
        f"{processes} processes" if processes > 1 else "",
        "torch.compile" if training.get("compiled") else "",
        "gone on from a checkpoint" if training.get("resumed") else "",
    ]
    return "Training: " + "; ".join(filter(None, said)) + "."


def _epochs(epochs: Sequence[Mapping[str, Any]]) -> str:
    """The last epochs, one row each."""
    if not epochs:
        return ""
    names = [name for name in _EPOCH_FIGURES if epochs[0][name] is not None]
    rows = [(str(epoch["epoch"]), *(_EPOCH_FIGURES[name].format(epoch[name]) for name in names)) for epoch in epochs]
    table = page.table(("epoch", *map(page.words, names)), rows[-_EPOCHS_SHOWN:])
    return f"<details><summary>Epochs ({len(rows)})</summary>{table}</details>"


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
        page.listing(f"{name} ({len(equivalence[name])})", equivalence[name])
        for name in ("insensitive", "unproven")
        if equivalence.get(name)
    ]
    return f'<p class="{"ok" if passed else "bad"}">{page.text(text)}</p>{"".join(listed)}'


def _layers(layers: Sequence[Mapping[str, Any]]) -> str:
    """Every layer in execution order, under the first part of its name, with bars relative to the largest layer."""
    most = {
        name: max((max(one["before"][name], one["after"][name]) for one in layers), default=0) or 1
        for name in ("params", "macs")
    }
    parts = [page.paragraph("Grey: original; blue: compressed. Bars are relative to the largest layer.")]
    for title, members in groupby(layers, key=lambda one: one["name"].split(".")[0]):
        rows = "".join(_layer(one, most) for one in members)
        parts.append(f"<h3>{page.text(title)}</h3>{rows}")
    return "".join(parts)


def _layer(layer: Mapping[str, Any], most: Mapping[str, int]) -> str:
    before, after = layer["before"], layer["after"]
    bars = "".join(
        f"<div><small>{page.number(before[name])} → {page.number(after[name])} {title}</small>"
        f"{page.bar(before[name] / most[name], 'b')}{page.bar(after[name] / most[name])}</div>"
        for name, title in (("params", "params"), ("macs", "MACs"))
        if before[name] or after[name]
    )
    return (
        f'<div class="layer"><span>{page.text(layer["name"])}</span>'
        f'<span class="w">{page.number(before["out"])} → {page.number(after["out"])}</span>{bars}</div>'
    )


def _reasons(result: Mapping[str, Any]) -> str:
    def lines(rows: Sequence[Mapping[str, str]]) -> list[str]:
        return [f"{row['layer']} ({row['operator']}): {row['reason']}" for row in rows]

    lists = {
        "Kept whole": lines(result["frozen"]),
        "Run over the surviving channels": lines(result.get("changed", ())),
        "Folded before pruning": list(result.get("folded", ())),
    }
    return "".join(page.listing(f"{title} ({len(rows)})", rows) for title, rows in lists.items() if rows)


def _files(artifacts: Sequence[Mapping[str, Any]]) -> str:
    return page.table(
        ("file", "bytes", "sha256"), [(one["name"], page.number(one["size"]), one["sha256"][:16]) for one in artifacts]
    )


def _notice(notice: Mapping[str, str]) -> str:
    return (
        f"<p>{page.text(': '.join(filter(None, (notice['artifact'], notice['message']))), longest=_LONGEST_NOTICE)}</p>"
    )


def _pairs(values: Mapping[str, Any]) -> str:
    rows = [(page.words(name), value) for name, value in values.items() if value not in (None, {}, [])]
    body = "".join(f"<tr><th>{page.text(name)}</th><td>{page.text(value)}</td></tr>" for name, value in rows)
    return f'<div class="table"><table class="pairs">{body}</table></div>'
