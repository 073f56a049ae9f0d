"""The report's page: everything is on it, nothing is fetched, and no name becomes markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from core.deliver.report_html import report_html
from tests.core.report_cases import result

VOID = {"meta", "path", "polyline"}


class Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_every_layer_cap_figure_and_file_is_shown():
    page = Page(report_html(result(layers=40)))
    assert page.open == []
    for index in range(40):
        assert f"layer{index}.conv" in page.text and f"{1327104 + index:,}" in page.text
    for words in (
        "800 of at most 1,000, 80.00 %",
        "50.0%",
        "-2.00 points",
        "3.0e-14",
        "needs all",
        "model.onnx",
        "binds",
    ):
        assert words in page.text


def test_the_curve_runs_from_the_first_to_the_last_point_downwards():
    (line,) = [attributes for tag, attributes in Page(report_html(result())).tags if tag == "polyline"]
    points = [tuple(map(float, one.split(","))) for one in line["points"].split()]
    assert len(points) == 3 and points == sorted(points)
    assert points[0][1] < points[1][1] < points[2][1]


def test_nothing_is_fetched_and_nothing_runs():
    text = report_html(result())
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "a", "form"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|//|url\(|@import", text)
    assert not any(name in ("src", "href") or name.startswith("on") for _, found in page.tags for name in found)
    assert "default-src 'none'" in str(page.tags)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a&lt;b", "'</style>"])
def test_hostile_names_stay_text(name):
    hostile = result(layers=1, name=name, folded=[name], plan={"note": name}, provenance={"architecture": name})
    page = Page(report_html(hostile))
    assert page.open == []
    assert page.text.count(name) >= 4
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not any("onerror" in found for _, found in page.tags)


def test_a_thousand_layers_of_long_names_stay_a_small_page():
    frozen = [{"layer": "x" * 5000, "operator": "y", "reason": "z"}] * 1000
    text = report_html(result(layers=1000, name="n" * 5000 + "{}", frozen=frozen))
    assert len(text) < 2_000_000
    assert "and 800 more, in report.json" in text


def test_a_job_without_data_or_training_has_a_page_too():
    bare = result(recovery={}, equivalence=None)
    bare["baseline"] = bare["compressed"] = {"params": 1, "macs": 0}
    assert Page(report_html(bare)).open == []


def test_training_is_shown_epoch_by_epoch():
    figures = {"train_accuracy": 0.9, "output_error": None, "learning_rate": 0.01, "images_per_s": 1840.0}
    epochs = [{"epoch": n, "loss": 1 / n, "validation_accuracy": 0.8 + n / 100, **figures} for n in (1, 2, 3)]
    page = Page(report_html(result(recovery={"method": "fine_tuning", "training": {"epoch_records": epochs}})))
    assert sum(tag == "polyline" for tag, _ in page.tags) == 2
    for words in ("Validation accuracy", "Train accuracy", "Epochs (", "83.00%", "0.3333", "1,840"):
        assert words in page.text
    assert "output error" not in page.text
