"""`pennyweightd worker` whose runners do what uploaded scripts say. Arguments: the queues, comma-separated, and how many
slots for the CPU; everything else comes from the environment."""

from __future__ import annotations

import sys
from pathlib import Path

from pennyweightd.failures import explained
from pennyweightd.options import load_settings
from pennyweightd.worker import work

SCRIPTED_COMMANDS = Path(__file__).resolve().parents[1] / "worker" / "scripted_commands.py"

if __name__ == "__main__":
    with explained():
        work(load_settings(), sys.argv[1].split(","), int(sys.argv[2]), commands=str(SCRIPTED_COMMANDS))
