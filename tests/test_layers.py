"""The rules of the house (docs: "client → api → store ← worker → core"), read from the code itself.

Every import statement counts, those inside functions too: an import that runs late still couples.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = frozenset({"api", "store", "worker", "core", "pennyweightd", "migrations", "pennyweight"})
ENGINE_LIBRARIES = frozenset({"torch", "torchvision", "timm", "onnx", "onnxruntime", "safetensors", "scipy"})
WEB = frozenset({"fastapi", "starlette", "uvicorn", "httpx", "requests", "python_multipart", "jinja2"})
DATABASE = frozenset({"sqlalchemy", "alembic", "psycopg", "sqlite3", "redis"})
CLOUD = frozenset({"boto3", "botocore", "celery", "kombu"})

FORBIDDEN = {
    "core": (PACKAGES - {"core"}) | WEB | DATABASE | CLOUD,
    "store": (PACKAGES - {"store", "migrations"}) | ENGINE_LIBRARIES | WEB,
    "api": (PACKAGES - {"api", "store"}) | ENGINE_LIBRARIES | CLOUD,
    "worker": (PACKAGES - {"worker", "store", "core"}) | WEB,
    "migrations": (PACKAGES - {"migrations", "store"}) | ENGINE_LIBRARIES | WEB | CLOUD,
    "client/src/pennyweight": (PACKAGES - {"pennyweight"}) | ENGINE_LIBRARIES | DATABASE | CLOUD,
}


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level package of every import in a file."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, (node.module or "").split(".")[0]


def breaches(paths: list[Path], forbidden: frozenset[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in paths
        for line, name in imported(path)
        if name in forbidden
    ]


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_package_imports_nothing_above_or_beside_it(folder):
    files = python_files(folder)
    assert files
    assert breaches(files, frozenset(FORBIDDEN[folder])) == []


def test_only_the_runner_of_the_worker_imports_the_engine():
    supervisor = [path for path in python_files("worker") if "runner" not in path.relative_to(ROOT).parts]
    assert supervisor
    assert breaches(supervisor, ENGINE_LIBRARIES | {"core", "numpy"}) == []


def test_runner_of_the_worker_touches_no_database():
    assert breaches(python_files("worker/runner"), DATABASE | CLOUD) == []


def test_only_the_server_command_imports_both_api_and_worker():
    both = {
        package
        for package in PACKAGES - {"pennyweight"}
        for names in [{name for path in python_files(package) for _, name in imported(path)}]
        if {"api", "worker"} <= names | {package}
    }
    assert both <= {"pennyweightd"}


def test_uploads_never_meet_a_loader_that_runs_code():
    """No `torch.load`, `pickle.load(s)` or `torch.jit.load` in anything that handles a user's file.

    One pickle is nobody's upload: what a training's first process has just written for its others.
    """
    between_processes = "core/recovery/processes.py: pickle.load"
    calls = {("torch", "load"), ("jit", "load"), ("pickle", "load"), ("pickle", "loads"), ("pickle", "Unpickler")}
    found = [
        f"{path.relative_to(ROOT)}: {ast.unparse(node)}"
        for package in ("api", "store", "worker", "core", "pennyweightd")
        for path in python_files(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and (ast.unparse(node.value).split(".")[-1], node.attr) in calls
    ]
    assert found == [between_processes]
