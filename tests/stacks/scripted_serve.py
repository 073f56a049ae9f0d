"""`pennyweightd serve` whose runners do what uploaded scripts say; everything else comes from the environment."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pennyweightd.server
from pennyweightd.failures import explained
from pennyweightd.options import load_settings
from worker.supervisor import Supervisor

SCRIPTED_COMMANDS = Path(__file__).resolve().parents[1] / "worker" / "scripted_commands.py"

if __name__ == "__main__":
    pennyweightd.server.Supervisor = partial(Supervisor, commands=str(SCRIPTED_COMMANDS))
    with explained():
        pennyweightd.server.serve(load_settings())
