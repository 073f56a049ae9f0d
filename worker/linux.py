"""The few Linux system calls that the sandbox needs and Python lacks, each checked for its error.

Only Python's standard library is used, so that a runner can confine itself before it imports anything large.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import platform
import socket
import struct
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
_MNT_DETACH = 2

_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_NOSUID = 0x2
_MOUNT_ATTR_NODEV = 0x4
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000

_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522

_SYS_MOUNT_SETATTR = 442  # one number on every architecture: it is younger than the unified table
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    _check(_libc().unshare(flags), f"unshare({flags:#x})")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    encoded_kind = kind.encode() if kind else None
    result = _libc().mount(
        os.fsencode(source), os.fsencode(target), encoded_kind, ctypes.c_ulong(flags), options.encode()
    )
    _check(result, f"mount {source} on {target}")


def unmount_lazily(target: str) -> None:
    _check(_libc().umount2(os.fsencode(target), _MNT_DETACH), f"umount {target}")


def make_mount_safe(target: str, *, read_only: bool, recursive: bool) -> None:
    """No set-uid programs and no devices below `target`; with `read_only`, no writes either."""
    attributes = _MountAttributes(set=_MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | (_MOUNT_ATTR_RDONLY if read_only else 0))
    result = _libc().syscall(
        _SYS_MOUNT_SETATTR,
        _AT_FDCWD,
        os.fsencode(target),
        _AT_RECURSIVE if recursive else 0,
        ctypes.byref(attributes),
        ctypes.sizeof(attributes),
    )
    _check(result, f"mount_setattr {target}")


def pivot_into(new_root: str) -> None:
    """Make `new_root`, a mount point, the root of this mount namespace and drop the old one."""
    os.chdir(new_root)
    machine = platform.machine()
    if machine not in _SYS_PIVOT_ROOT:
        raise OSError(f"pivot_root is not known for {machine}")
    _check(_libc().syscall(_SYS_PIVOT_ROOT[machine], b".", b"."), f"pivot_root {new_root}")
    unmount_lazily(".")
    os.chdir("/")


def raise_loopback() -> None:
    """Let the processes of this network namespace reach each other through `lo`. Needs CAP_NET_ADMIN in it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process a signal when the thread that started it ends.

    Changing the user clears the setting, so call it after that.
    """
    _check(_libc().prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal_number), 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def forbid_new_privileges() -> None:
    _check(_libc().prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def bound_capabilities() -> None:
    """Let nothing that this process executes gain a capability. Needs CAP_SETPCAP, so call it before giving up root."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in range(last + 1):
        # Refused without CAP_SETPCAP; there is nothing to lose then, and no_new_privs closes the rest.
        _libc().prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)


def drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _check(_libc().capset(header, nothing), "capset")
