"""What goes into the images, read from the Dockerfile; docker/check.sh builds them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def stage(name: str) -> str:
    """The text of one stage."""
    return re.split(r"(?m)^FROM ", re.split(rf"(?m)^FROM \S+ AS {name}$", DOCKERFILE)[1])[0]


def test_image_of_the_api_has_no_engine_and_those_of_workers_have_it():
    installed = {name: re.search(r"'\.\[([\w,]+)\]'", stage(f"build-{name}"))[1].split(",") for name in IMAGES}
    assert {name: "engine" in extras for name, extras in installed.items()} == {
        "api": False,
        "worker": True,
        "worker-cuda": True,
    }
    # `fast` is for those who multiply by what a job delivered; compiling its kernels takes longer than a job's one decoding.
    wanted = set(EXTRAS) - {"test", "demo", "engine", "fast"}
    assert all(set(extras) - {"engine"} == wanted for extras in installed.values())


def test_everything_is_installed_under_the_constraints():
    installs = re.findall(r"pip install(?:.|\\\n)*", DOCKERFILE)
    assert len(installs) == 5
    assert all("--constraint constraints.txt" in install for install in installs)


def test_final_images_run_as_nobody_in_particular_and_say_how_they_are():
    for name in IMAGES:
        assert re.search(r"(?m)^USER 10001:10001$", stage(name))
    assert "HEALTHCHECK" in stage("api") and "HEALTHCHECK" in stage("worker-base")


def test_context_is_a_list_of_what_is_needed_and_all_of_it_is_there():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines and all((ROOT / name).exists() for name in allowed)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {package.rstrip("*") for package in packages} <= allowed


IMAGES = ("api", "worker", "worker-cuda")
