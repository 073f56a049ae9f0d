"""A real S3 server that we did not write, for tests: OpenStack Swift with its s3api, on loopback, in one folder.

    python3 .ci/swift_server.py FOLDER

Needs Debian's swift-proxy, swift-account, swift-container, swift-object and memcached. Prints one line, the
PENNYWEIGHT_TEST_S3_URL of an empty bucket, and serves until it is told to stop (SIGTERM or SIGINT); then nothing that
it started is left. The credentials are those below: tempauth's user is the access key, its password the secret.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCESS_KEY = "test:tester"
SECRET_KEY = "testing"
BUCKET = "pennyweight"
START_TIMEOUT_S = 60
SERVERS = ("account", "container", "object")

SWIFT = """\
[swift-hash]
swift_hash_path_prefix = pennyweight
swift_hash_path_suffix = tests

[storage-policy:0]
name = one
default = yes
"""

STORAGE = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {etc}
devices = {devices}
mount_check = false
fallocate_reserve = 0
workers = 1
log_address = {folder}/none
log_level = ERROR

[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
"""

PROXY = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {etc}
workers = 2
log_address = {folder}/none
log_level = ERROR

[pipeline:main]
pipeline = catch_errors proxy-logging cache s3api tempauth copy slo dlo proxy-logging proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:proxy-logging]
use = egg:swift#proxy_logging

[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}

[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1

[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin

[filter:copy]
use = egg:swift#copy

[filter:slo]
use = egg:swift#slo

[filter:dlo]
use = egg:swift#dlo
"""


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    missing = [name for name in ("swift-proxy-server", "swift-ring-builder", "memcached") if shutil.which(name) is None]
    if missing:
        sys.exit(
            f"Not installed: {', '.join(missing)} (apt install swift-proxy swift-account swift-container swift-object memcached)."
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    folder = Path(sys.argv[1]).absolute()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        endpoint = _start(folder, processes)
        _create_bucket(endpoint, processes)
        print(f"s3://{BUCKET}?endpoint={endpoint}", flush=True)
        while all(process.poll() is None for process in processes):
            time.sleep(0.5)
        sys.exit(f"A server ended by itself; {folder}/*.log says why.")
    finally:
        _stop(processes)


def _start(folder: Path, processes: list[subprocess.Popen[bytes]]) -> str:
    etc, devices = folder / "etc", folder / "devices"
    etc.mkdir(parents=True)
    (devices / "d1").mkdir(parents=True)
    ports = _free_ports(len(SERVERS) + 2)
    names = {"folder": folder, "etc": etc, "devices": devices, "user": getpass.getuser(), "memcached": ports[-1]}
    (etc / "swift.conf").write_text(SWIFT)
    for kind, port in zip(SERVERS, ports, strict=False):
        (etc / f"{kind}.conf").write_text(STORAGE.format(kind=kind, port=port, **names))
        builder = f"{kind}.builder"
        for arguments in (("create", "2", "1", "0"), ("add", f"r1z1-127.0.0.1:{port}/d1", "1"), ("rebalance",)):
            subprocess.run(["swift-ring-builder", builder, *arguments], cwd=etc, check=True, stdout=subprocess.DEVNULL)
    (etc / "proxy.conf").write_text(PROXY.format(port=ports[-2], **names))
    commands = {kind: [f"swift-{kind}-server", str(etc / f"{kind}.conf")] for kind in (*SERVERS, "proxy")}
    commands["memcached"] = ["memcached", "-l", "127.0.0.1", "-p", str(ports[-1]), "-U", "0", "-m", "32"]
    if os.geteuid() == 0:
        commands["memcached"] += ["-u", "root"]
    for name, command in commands.items():
        with (folder / f"{name}.log").open("wb") as log:
            # A process group of its own: Swift's servers have workers, and Ctrl-C is ours to pass on.
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
    return f"http://127.0.0.1:{ports[-2]}"


def _create_bucket(endpoint: str, processes: list[subprocess.Popen[bytes]]) -> None:
    """Through Swift's own API, which needs no request signing."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            login = urllib.request.Request(
                f"{endpoint}/auth/v1.0", headers={"X-Auth-User": ACCESS_KEY, "X-Auth-Key": SECRET_KEY}
            )
            with urllib.request.urlopen(login, timeout=5) as answer:
                url, token = answer.headers["X-Storage-Url"], answer.headers["X-Auth-Token"]
            bucket = urllib.request.Request(f"{url}/{BUCKET}", method="PUT", headers={"X-Auth-Token": token})
            with urllib.request.urlopen(bucket, timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
                sys.exit(f"Swift did not start: {error}")
            time.sleep(0.2)


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, number)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and any(process.poll() is None for process in processes):
            time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


if __name__ == "__main__":
    main()
