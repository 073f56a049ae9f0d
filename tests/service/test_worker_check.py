"""`pennyweightd worker --check`: whether the worker on a data folder has lately said that all its slots live."""

from __future__ import annotations

import os
import time

import pytest
from typer.testing import CliRunner

from pennyweightd.__main__ import app
from pennyweightd.worker import SILENCE_S
from worker.supervisor import ALIVE_FILE


@pytest.mark.parametrize(
    ("silent_s", "status", "told"),
    [(None, 1, "last heard of: never"), (1.0, 0, ""), (SILENCE_S - 20, 0, ""), (SILENCE_S + 20, 1, "s ago")],
)
def test_worker_is_checked_by_when_it_was_last_heard_of(tmp_path, silent_s, status, told):
    if silent_s is not None:
        file = tmp_path / ALIVE_FILE
        file.touch()
        os.utime(file, (time.time() - silent_s,) * 2)
    result = CliRunner().invoke(app, ["worker", "--check", "--data-dir", str(tmp_path)])
    assert (result.exit_code != 0) == (status != 0), result.output
    assert told in result.output
    assert not (tmp_path / "pennyweight.db").exists()
