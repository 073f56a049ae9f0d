"""PostgreSQL and Redis for tests: private servers on free loopback ports, their data in a folder that goes with them.

`python3 tests/servers.py postgres|redis FOLDER` keeps one running until it is told to end, its URL on the first line of
output; only the standard library is needed, so that any Python can do it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

START_TIMEOUT_S = 60.0
POSTGRES_USER = "pennyweight"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def program(name: str) -> str | None:
    """Where a server program is. Debian keeps PostgreSQL's off the PATH."""
    if found := shutil.which(name):
        return found
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return str(versions[-1]) if versions else None


def _other_user() -> str | None:
    """PostgreSQL refuses to run as root; whose it runs as then."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


class _Server:
    """A process that can be killed and started again on the same port and data."""

    def __init__(self, folder: Path | None = None) -> None:
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="pennyweight-test-server-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        command, user = self._command()
        self._process = subprocess.Popen(
            command,
            user=user,
            group=None if user is None else pwd.getpwnam(user).pw_gid,
            extra_groups=None if user is None else [],
            cwd=self.folder,
            stdout=(self.folder / "log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.05)

    def stop(self) -> None:
        self._end(self._stop_signal())

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def _end(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def _command(self) -> tuple[list[str], str | None]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _stop_signal(self) -> int:
        return signal.SIGTERM


class Postgres(_Server):
    """A cluster whose one user may do everything. Nothing is synchronised to disk: tests survive no power cut."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder)
        data = self.folder / "data"
        user = _other_user()
        if user is not None:
            shutil.chown(self.folder, user)
        subprocess.run(
            [
                program("initdb"),
                "-D",
                data,
                "-A",
                "trust",
                "-U",
                POSTGRES_USER,
                "--no-sync",
                "-E",
                "UTF8",
                "--locale=C",
            ],
            check=True,
            capture_output=True,
            user=user,
            cwd=self.folder,
        )

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{POSTGRES_USER}@127.0.0.1:{self.port}/{database}"

    def _command(self) -> tuple[list[str], str | None]:
        # A disk that loses power is not played here, a server that is killed is: what it has committed stays.
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "max_connections": 300,
            "shared_buffers": "64MB",
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [program("postgres"), "-D", str(self.folder / "data"), *arguments], _other_user()

    def _answers(self) -> bool:
        """Whether connections are accepted: while it starts up or recovers, the server says so on a connection."""
        request = (8).to_bytes(4, "big") + (196608).to_bytes(4, "big")
        body = b"user\0" + POSTGRES_USER.encode() + b"\0database\0postgres\0\0"
        request = (len(body) + 8).to_bytes(4, "big") + request[4:] + body
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 2) as connection:
            connection.sendall(request)
            return connection.recv(1) == b"R"
        return False

    def _stop_signal(self) -> int:
        return signal.SIGINT  # disconnect clients, shut down in order


class Redis(_Server):
    """Nothing is kept over a restart, as with a broker that lost its disk."""

    def url(self, database: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"

    def flush(self) -> None:
        self._say(b"FLUSHALL\r\n")

    def _command(self) -> tuple[list[str], str | None]:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        return [program("redis-server"), *options, "--dir", str(self.folder)], None

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self._say(b"PING\r\n").startswith(b"+PONG")
        return False

    def _say(self, command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.sendall(command)
            return connection.recv(1024)


def main(kind: str, folder: Path) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with {"postgres": Postgres, "redis": Redis}[kind](folder) as server:
        print(server.url(), flush=True)
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
