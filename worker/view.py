"""What a confined runner sees of the file system: the interpreter, our code, its own folder, and nothing else.

The view is a list of what may be seen, never of what must be hidden: home directories, the database, other tenants'
objects and the host's sockets are absent because nobody put them there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from worker import linux

CODE_ROOT = Path(__file__).resolve().parents[1]
# The packages that a runner imports. The checkout as a whole stays out of sight: a data folder may lie in it.
CODE_PACKAGES = ("core", "store", "worker")
SYSTEM_PATHS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/sys/devices/system")
SYSTEM_FILES = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/localtime",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
)
PLAIN_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
# A GPU's driver looks its device up in /sys.
GPU_PATHS = ("/sys",)
SHARED_MEMORY_BYTES = 2**30


@dataclass(frozen=True)
class View:
    """Paths seen read-only, devices, and the one folder that may be written (also mounted on /tmp by its `tmp`)."""

    readable: tuple[str, ...]
    devices: tuple[str, ...]
    folder: str

    @staticmethod
    def of_interpreter(folder: Path, *, gpu: bool, also: Iterable[str] = ()) -> View:
        """The view for this interpreter and this code, with the host's GPU devices where they are wanted."""
        wanted = [*SYSTEM_PATHS, *SYSTEM_FILES, sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix]
        wanted += [str(CODE_ROOT / package) for package in CODE_PACKAGES]
        wanted += also
        wanted += [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
        devices = gpu_devices() if gpu else ()
        if devices:
            wanted += GPU_PATHS
        return View(_outermost(wanted), devices, str(folder))

    def covers(self, path: Path) -> bool:
        """Whether `path` would be readable inside."""
        return any(path.is_relative_to(seen) for seen in self.readable)


def gpu_devices() -> tuple[str, ...]:
    devices = [*Path("/dev").glob("nvidia*"), *Path("/dev/nvidia-caps").glob("*")]
    return tuple(sorted(str(path) for path in devices if not path.is_dir()))


def _outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """Absolute existing paths and what they resolve to, without those that another one contains."""
    absolute = {os.path.normpath(path) for path in paths if path.startswith("/")}
    found = {path for path in absolute if Path(path).exists()}
    found |= {os.path.realpath(path) for path in found}
    kept: list[str] = []
    for path in sorted(found, key=lambda p: (p.count("/"), p)):
        if path != "/" and not any(Path(path).is_relative_to(outer) for outer in kept):
            kept.append(path)
    return tuple(kept)


def bubblewrap_arguments(view: View, hidden: Iterable[str]) -> list[str]:
    """The view in bubblewrap's words."""
    # /tmp first: code or the runner's folder may lie below it.
    arguments = ["--bind", f"{view.folder}/tmp", "/tmp"]
    for path in view.readable:
        if Path(path).is_symlink():
            arguments += ["--symlink", str(Path(path).readlink()), path]
        else:
            arguments += ["--ro-bind", path, path]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    for device in view.devices:
        arguments += ["--dev-bind", device, device]
    for path in hidden:
        if view.covers(Path(path)):
            arguments += ["--tmpfs", path]
    return [*arguments, "--bind", view.folder, view.folder]


def enter_view(view: View, hidden: Iterable[str]) -> None:
    """Make the view this mount namespace's root. Needs a mount namespace of its own and the right to mount in it."""
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    root = Path(view.folder) / "root"
    root.mkdir(exist_ok=True)
    linux.mount("tmpfs", str(root), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755,size=16m")
    # /tmp first: code or the runner's folder may lie below it.
    _bind(root, f"{view.folder}/tmp", "/tmp", read_only=False)
    for path in view.readable:
        if Path(path).is_symlink():
            inside = _inside(root, path)
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.symlink_to(Path(path).readlink())
        else:
            _bind(root, path, path, read_only=True)
    _mount_proc(root)
    _mount_devices(root, view.devices)
    for path in hidden:
        if view.covers(Path(path)):
            linux.mount(
                "tmpfs", str(_inside(root, path)), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755,size=1m"
            )
    _bind(root, view.folder, view.folder, read_only=False)
    linux.make_mount_safe(str(root), read_only=True, recursive=False)
    linux.pivot_into(str(root))


def _inside(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _bind(root: Path, path: str, name: str, *, read_only: bool) -> None:
    """Show a path of the host as `name`. A read-only one brings the mounts below it, a writable one does not."""
    target = _inside(root, name)
    if Path(path).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    linux.mount(path, str(target), None, linux.MS_BIND | (linux.MS_REC if read_only else 0))
    linux.make_mount_safe(str(target), read_only=read_only, recursive=read_only)


def _mount_proc(root: Path) -> None:
    target = root / "proc"
    target.mkdir()
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC | linux.MS_RDONLY
    try:
        linux.mount("proc", str(target), "proc", flags)
    except PermissionError:
        # Containers that mask parts of /proc forbid a fresh one. The host's shows other processes' names; their memory
        # and environment stay closed to another user or user namespace.
        linux.mount("/proc", str(target), None, linux.MS_BIND | linux.MS_REC)
        linux.make_mount_safe(str(target), read_only=True, recursive=True)


def _mount_devices(root: Path, devices: Iterable[str]) -> None:
    folder = root / "dev"
    folder.mkdir()
    for device in (*PLAIN_DEVICES, *devices):
        target = _inside(root, device)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
        linux.mount(device, str(target), None, linux.MS_BIND)
    shared = folder / "shm"
    shared.mkdir()
    options = f"mode=1777,size={SHARED_MEMORY_BYTES}"
    linux.mount("tmpfs", str(shared), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC, options)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (folder / name).symlink_to(target)
