"""A TCP proxy that can make what is behind it slow, failing and absent."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Literal
from urllib.parse import urlsplit

CHUNK_BYTES = 65536
SLOW_S = 0.2
CUT_AFTER_BYTES = 200

Mode = Literal["well", "slow", "cut", "absent"]


class FaultProxy:
    """`url` leads to `endpoint`. mode: `slow` delays every chunk, `cut` ends connections in the middle of an answer,
    `absent` closes them at once."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._target = (parts.hostname or "", parts.port or 80)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._serving: set[asyncio.Task[None] | None] = set()  # the loop itself remembers tasks only weakly
        self._thread = threading.Thread(target=self._run, name="fault proxy", daemon=True)
        self.mode: Mode = "well"
        self.url = ""

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(task := asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.CancelledError):
            if self.mode != "absent":
                there, back = await asyncio.open_connection(*self._target)
                try:
                    await asyncio.gather(self._copy(reader, back, cuts=False), self._copy(there, writer, cuts=True))
                finally:
                    back.close()
        writer.close()
        self._serving.discard(task)

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, cuts: bool) -> None:
        while chunk := await source.read(CHUNK_BYTES):
            match self.mode:
                case "slow":
                    await asyncio.sleep(SLOW_S)
                case "cut" if cuts:
                    sink.write(chunk[:CUT_AFTER_BYTES])
                    raise ConnectionResetError
                case "absent":
                    raise ConnectionResetError
            sink.write(chunk)
            await sink.drain()
        with contextlib.suppress(OSError):
            sink.write_eof()
