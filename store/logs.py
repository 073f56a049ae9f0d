"""Log lines that can be searched: for people on a console, or as one JSON object each, with what they are about.

`bound(job_id=…)` puts fields on every line that its block logs, in this thread and in those that were given its context;
`add` adds to the innermost block. Whatever looks like a secret is taken out of every line, wherever it comes from: a
library's exception may quote a URL with its password.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO
from urllib.parse import unquote, urlsplit

from store.settings import Settings

REDACTED = "[redacted]"

_bound: ContextVar[dict[str, object] | None] = ContextVar("pennyweight_log_fields", default=None)

_SECRETS = (
    (re.compile(r"\b(pw_live_|whsec_)[A-Za-z0-9_\-+/=]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=\-]{6,}"), rf"\1 {REDACTED}"),
    (re.compile(r"(?<=://)([^\s/:@]*):[^\s/@]+@"), rf"\1:{REDACTED}@"),
    (re.compile(r"(?i)\b(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s\"']+"), rf"\1{REDACTED}"),
)
_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_SHORTEST_SECRET = 6
# Libraries that tell at INFO what is no news: schema versions at every start, every connection.
_QUIET = {"alembic": logging.WARNING, "uvicorn": logging.WARNING, "botocore": logging.WARNING}


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Every line that the block logs carries these fields too."""
    token = _bound.set({**(_bound.get() or {}), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def add(**fields: object) -> None:
    """More fields for the innermost block, from here on; without one this does nothing."""
    if (current := _bound.get()) is not None:
        current.update(fields)


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Send everything that this process logs, libraries included, to `stream` (standard error) as the settings say."""
    redact = Redactor(known_secrets(settings))
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(redact) if settings.log_format == "json" else ConsoleFormatter(redact))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):  # and not a place for one; servers bring handlers of their own
            logger.handlers.clear()
            logger.propagate = True
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, root.level))


def known_secrets(settings: Settings) -> list[str]:
    """Secrets that this process was given, so that they are recognised wherever they turn up."""
    urls = (value for name, value in settings if name.endswith("_url") and isinstance(value, str))
    passwords = [urlsplit(url).password for url in urls]
    tokens = [value.get_secret_value() for _, value in settings if hasattr(value, "get_secret_value")]
    found = {*passwords, *map(unquote, filter(None, passwords)), *tokens, *map(os.environ.get, _SECRET_VARIABLES)}
    return sorted(filter(None, found), key=len, reverse=True)


class Redactor:
    """Takes secrets out of text: those that it was told, and whatever has the shape of one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        long_enough = [re.escape(secret) for secret in secrets if len(secret) >= _SHORTEST_SECRET]
        self._told = re.compile("|".join(long_enough)) if long_enough else None

    def __call__(self, text: str) -> str:
        if self._told is not None:
            text = self._told.sub(REDACTED, text)
        for pattern, replacement in _SECRETS:
            text = pattern.sub(replacement, text)
        return text


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, what is bound, what the line itself brings in `fields`."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps({key: self._clean(value) for key, value in line.items()}, ensure_ascii=False)

    def _clean(self, value: object) -> object:
        return value if isinstance(value, int | float | None) else self._redact(str(value))


class ConsoleFormatter(logging.Formatter):
    """Time, level, logger, message, and in brackets whatever is bound and not already said."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._redact = redact

    def formatMessage(self, record: logging.LogRecord) -> str:
        about = " ".join(f"{key}={value}" for key, value in bound_fields().items() if str(value) not in record.message)
        return super().formatMessage(record) + (f" [{about}]" if about else "")

    def format(self, record: logging.LogRecord) -> str:
        return self._redact(super().format(record))


def bound_fields() -> dict[str, object]:
    """What is bound here and now."""
    return dict(_bound.get() or {})


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {**bound_fields(), **getattr(record, "fields", {})}
