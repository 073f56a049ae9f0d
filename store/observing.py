"""What every long-running process does first, so that it can be watched: its log, and traces where they are wanted."""

from __future__ import annotations

from importlib.metadata import version

from store import logs, tracing
from store.settings import Settings


def observe(settings: Settings) -> None:
    """Log as the settings say, and trace if they say so. Raises TracingUnavailable.

    A forked process does this again: the thread that sends its parent's traces was not forked with it.
    """
    logs.configure(settings)
    if settings.tracing:
        tracing.configure(version("pennyweight-server"))
