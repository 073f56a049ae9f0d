"""The operator's page cannot go stale: its settings, metrics, commands and files are those that exist."""

from __future__ import annotations

import re
from pathlib import Path

from docs import settings_table
from pennyweightd.__main__ import app
from store.settings import Settings
from tests.api.conftest import CATALOGUE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operating.md").read_text()


def test_table_of_settings_is_the_one_that_the_code_gives():
    assert settings_table.written() == PAGE, "run: python -m docs.settings_table"


def test_every_setting_has_words_and_every_setting_named_exists():
    assert set(settings_table.words()) == set(Settings.model_fields)
    named = {name.rstrip("_") for name in re.findall(r"PENNYWEIGHT_[A-Z0-9_]+", PAGE)}
    known = {f"PENNYWEIGHT_{name.upper()}" for name in Settings.model_fields} | {"PENNYWEIGHT_QUOTA"}
    assert named <= known


def test_every_metric_named_is_told(service):
    service.publish(CATALOGUE)
    service.job()
    service.inspect_model()
    service.finish_job()
    told = set(re.findall(r"(?m)^# HELP (\w+)", service.client.get("/metrics").text))
    named = set(re.findall(r"pennyweight_[a-z_]+[a-z]", PAGE))
    assert named - {"pennyweight_http"} <= told
    assert {name for name in told - named if not name.endswith("_created")} == set()


def test_commands_and_files_named_are_there():
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    commands |= {group.name for group in app.registered_groups}
    assert set(re.findall(r"`pennyweightd (\w+)", PAGE)) - commands == set()
    for path in re.findall(r"\b(?:docker|deploy|docs)/[\w./-]+\w", PAGE):
        assert (ROOT / path).exists(), path
