"""`python -I …/worker/runner/__main__.py FOLDER --fd N --parent PID --policy JSON [--commands MODULE]`

Confine this process, get ready (import the engine), wait for the word on standard input, do the one task that
`task.json` names, say how it ended, and end. The word comes when the task's files are in place, so a runner can be
started before there is a task for it.
"""

import argparse
import faulthandler
import importlib
import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

if __name__ == "__main__" and sys.flags.isolated:
    # Isolated mode keeps the checkout off the path; these are the packages beside this one.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from worker.protocol import read_task
from worker.runner.session import run_task, told_to_start
from worker.sandbox import Policy, enter

DEFAULT_COMMANDS = "worker.runner.commands"
TERMINATED = 128 + signal.SIGTERM


def main() -> int:
    parser = argparse.ArgumentParser(prog="worker.runner")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fd", type=int, required=True, help="descriptor to write messages to")
    parser.add_argument("--parent", type=int, required=True, help="the supervisor, with which this process dies")
    parser.add_argument("--policy", type=Policy.from_json, required=True, help="how to be confined, as JSON")
    parser.add_argument(
        "--commands", default=DEFAULT_COMMANDS, help="module (or .py file) that holds the command table"
    )
    arguments = parser.parse_args()

    # Loaded before the confinement hides it; a command table imports nothing heavy until a command runs.
    commands = _load(arguments.commands)
    enter(arguments.policy, arguments.folder, message_fd=arguments.fd, parent_pid=arguments.parent)
    faulthandler.enable()
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(TERMINATED))

    commands.prepare()
    orders = sys.stdin.fileno()
    if not told_to_start(orders):
        return 0
    with os.fdopen(arguments.fd, "wb", buffering=0) as messages:
        return run_task(read_task(arguments.folder), arguments.folder, commands.COMMANDS, messages, orders)


def _load(name: str) -> ModuleType:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
