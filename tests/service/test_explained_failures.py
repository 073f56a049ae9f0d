"""Trouble at the start of a server is one line and exit status 2, whoever speaks it in several."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from pennyweightd.failures import explained
from store.dialect import CONNECT_TIMEOUT_S, connect_args


def test_database_server_that_does_not_answer_is_one_line_without_the_password(capsys):
    words = (
        'connection to server at "127.0.0.1", port 9 failed: Connection refused\n\tIs the server running on that host?'
    )
    with pytest.raises(SystemExit) as ended, explained():
        raise OperationalError("SELECT 1", {}, Exception(words))
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith("error: the database cannot be used: connection to server") and told.count("\n") == 1
    assert "Connection refused Is the server running on that host? Check PENNYWEIGHT_DATABASE_URL" in told


def test_database_server_that_drops_packets_is_not_waited_for_for_long():
    assert connect_args(make_url("postgresql+psycopg://u@host/x")) == {"connect_timeout": CONNECT_TIMEOUT_S}
    assert connect_args(make_url("postgresql+psycopg://u@host/x?connect_timeout=3")) == {}
