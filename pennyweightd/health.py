"""`pennyweightd health`: does the worker on this data folder live? For containers, whose engine asks by a command.

That a process exists says little: it may have lost the database, or its slots may have ended. A worker whose slots live says
so in the database every 20 s or so, under the name that its data folder remembers.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from pennyweightd.data_folder import remembered_owner
from pennyweightd.options import open_database
from store.catalogue import CatalogueRepository
from store.settings import Settings
from store.statistics import WORKER_SILENCE_S


def check(settings: Settings) -> None:
    """Ends the program with status 1 unless the worker of this data folder was heard of lately."""
    owner = remembered_owner(settings.data_dir)
    if owner is None:
        _unhealthy(f"No worker has ever run on the data folder {settings.data_dir}.")
    with open_database(settings) as database, database.read() as session:
        silent_for_s = CatalogueRepository(session).silent_for_s(owner)
    if silent_for_s is None:
        _unhealthy("The worker has not said yet what it can do.")
    if silent_for_s > WORKER_SILENCE_S:
        _unhealthy(f"The worker has not been heard of for {silent_for_s:.0f} s.")
    print(f"The worker was heard of {silent_for_s:.0f} s ago.")


def _unhealthy(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(1)
