"""What goes wrong for reasons that a person can put right: one sentence, exit status 2, no traceback."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from pennyweightd.data_folder import DataFolderInUse
from store.errors import StoreError
from worker.probe import NoSandbox

EXIT_USAGE = 2


class Refusal(Exception):
    """A command that cannot be carried out as it was given; the message says why and what to do."""


def require_engine() -> None:
    """Raises Refusal where only the service is installed: an API needs no torch, a worker does."""
    if importlib.util.find_spec("torch") is None:
        raise Refusal(
            "The engine is not installed here. Run: pip install 'pennyweight-server[engine]'. An installation without it can "
            "run `pennyweightd api`, `migrate` and `keys`."
        )


@contextmanager
def explained() -> Iterator[None]:
    """Turn expected trouble into a message and an exit status."""
    try:
        yield
    except ValidationError as error:
        problems = "; ".join(f"{_setting_name(problem['loc'])}: {problem['msg']}" for problem in error.errors())
        _refuse(f"a setting is wrong: {problems}")
    except DBAPIError as error:
        # Drivers speak in several lines, with advice of their own.
        reason = " ".join(str(error.orig).split())
        hint = "Check PENNYWEIGHT_DATABASE_URL, and that the server runs or the file is undamaged."
        _refuse(f"the database cannot be used: {reason}{'' if reason.endswith(('.', '?')) else '.'} {hint}")
    except (Refusal, DataFolderInUse, NoSandbox, StoreError, OSError) as error:
        _refuse(str(error))


def _setting_name(location: tuple[int | str, ...]) -> str:
    return "PENNYWEIGHT_" + "_".join(map(str, location)).upper() if location else "settings"


def _refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(EXIT_USAGE)
