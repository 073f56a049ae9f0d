"""What every long-running process does first, so that it can be watched: its log, and traces where they are wanted."""

from __future__ import annotations

from api.operations import VERSION
from store import logs, tracing
from store.settings import Settings


def observe(settings: Settings) -> None:
    """Log as the settings say, and trace if they say so. Raises TracingUnavailable."""
    logs.configure(settings)
    if settings.tracing:
        tracing.configure(VERSION)
