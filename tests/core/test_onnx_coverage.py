"""The page of operators says what the table of handlers holds."""

from __future__ import annotations

from pathlib import Path

from core.intake.onnx.coverage import page
from core.intake.onnx.handlers import HANDLERS

PAGE = Path(__file__).parents[2] / "docs" / "onnx_operators.md"


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run: python -m core.intake.onnx.coverage > docs/onnx_operators.md"
    )


def test_every_handler_is_on_the_page_once_with_its_definitions():
    rows = [line.split("|")[1:3] for line in page().splitlines() if line.startswith("| ")]
    listed = {name.strip(): versions.strip() for name, versions in rows if name.strip() != "operator"}
    assert listed.keys() == HANDLERS.keys()
    assert listed["Relu"] == "6, 13, 14" and listed["GroupNormalization"] == "18, 21"
