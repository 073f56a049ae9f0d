"""Servers in processes of their own, measured from outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import httpx

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Server:
    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu_s(self) -> float:
        """Processor seconds that it has used: what other processes on the machine do does not change it much."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def process(arguments: list[str], environment: Mapping[str, str] = MappingProxyType({})) -> Iterator[Server]:
    """A server in a process of its own, which prints a line with its address on 127.0.0.1."""
    command, environment = [sys.executable, *arguments], {**os.environ, **environment}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    try:
        assert server.stdout is not None
        port = int(re.search(r"(\d+)(?:\s|$)", server.stdout.readline().partition("127.0.0.1:")[2])[1])
        found = Server(port, server.pid)
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{found.url}/healthz")
                break
            except httpx.HTTPError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield found
    finally:
        server.terminate()
        server.wait()
