"""The long-running commands: the API, alone or together with the embedded worker, until a signal says stop."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.dependencies import Services
from api.security import keys_required
from pennyweightd.data_folder import DataFolder
from pennyweightd.failures import Refusal, require_engine
from pennyweightd.options import open_database
from store.database import Database
from store.doorbell import Doorbell, NoQueue
from store.keys import any_valid_key
from store.objects import ObjectStore, object_store
from store.observing import observe
from store.settings import Settings
from store.work import release_owner
from worker.housekeeper import Housekeeper
from worker.supervisor import Supervisor
from worker.sweeper import Sweeper
from worker.webhooks import WebhookSender

logger = logging.getLogger(__name__)

# Requests that are still being answered when the server stops; uploads and waits are cut off then.
GRACE_S = 5
BACKLOG = 2048


def serve(settings: Settings) -> None:
    """Embedded mode: own database and objects in the data folder, API and worker in one process."""
    require_engine()
    observe(settings)
    with DataFolder(settings.data_dir) as folder, open_database(settings) as database:
        database.migrate()
        _require_keys_for_strangers(settings, database)
        objects = open_objects(settings)
        with _bind(settings) as listener:
            settings = settings.model_copy(update={"port": listener.getsockname()[1]})
            take_back(database, folder)
            supervisor = Supervisor(settings, database, objects, owner=folder.owner)
            supervisor.start()
            try:
                app = create_app(settings, database, objects, wake=supervisor.wake)
                place = f"data in {folder.path}, sandbox level {supervisor.crew.confinement.level}"
                with WebhookSender(database, settings.webhook_policy):
                    _run(app, listener, lambda: _announce(settings, place), supervisor.begin_stop)
            finally:
                supervisor.stop()


def serve_api(settings: Settings) -> None:
    """The API alone, beside workers that run elsewhere. Raises SchemaOutdated."""
    observe(settings)
    with open_database(settings) as database:
        database.check_schema()
        _require_keys_for_strangers(settings, database)
        objects = open_objects(settings)
        with _bind(settings) as listener:
            settings = settings.model_copy(update={"port": listener.getsockname()[1]})
            with (
                WebhookSender(database, settings.webhook_policy),
                _doorbell(settings, database) as ring,
                _sweepers(settings, database, objects, ring),
            ):
                app = create_app(settings, database, objects, wake=ring)
                _run(app, listener, lambda: _announce(settings, "API only"), lambda: None)


def open_objects(settings: Settings) -> ObjectStore:
    """The object store that the settings name. Raises Refusal."""
    try:
        return object_store(settings.resolved_storage_url, settings.storage_public_url)
    except ValueError as error:
        raise Refusal(str(error)) from error


def take_back(database: Database, folder: DataFolder) -> None:
    """Have the work done again that the last process on this folder held when it was killed."""
    if taken_back := release_owner(database, folder.owner):
        logger.warning("Took back %d piece(s) of work that this folder's last server held.", taken_back)


@contextmanager
def _doorbell(settings: Settings, database: Database) -> Iterator[Callable[[], None] | None]:
    """How workers are told about work; None where they look by themselves. Raises Refusal."""
    if settings.queue_url is None:
        yield None
        return
    try:
        doorbell = Doorbell(database, settings.queue_url)
    except NoQueue as error:
        raise Refusal(str(error)) from error
    with doorbell:
        yield doorbell.ring


@contextmanager
def _sweepers(
    settings: Settings, database: Database, objects: ObjectStore, ring: Callable[[], None] | None
) -> Iterator[None]:
    """Every worker has these too; here they see to it that jobs end while no worker is left."""
    stopping = threading.Event()
    threads = (
        Sweeper(
            database,
            None,
            set,
            ring or (lambda: None),
            lambda: None,
            sweep_s=settings.sweep_s,
            lease_s=settings.lease_s,
            stopping=stopping,
        ),
        Housekeeper(settings, database, objects, stopping),
    )
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join(GRACE_S)


class _Server(uvicorn.Server):
    """uvicorn, saying when it is ready and when it begins to stop."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None], on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)


def _run(app: FastAPI, listener: socket.socket, on_ready: Callable[[], None], on_stop: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM; then finish what is being answered and return."""
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=GRACE_S
    )
    services: Services = app.state.services

    def stopping() -> None:
        services.watcher.stop()  # who waits for a job is answered now, not cut off in five seconds
        on_stop()

    server = _Server(config, on_ready, stopping)

    def stop(number: int, frame: object) -> None:
        # uvicorn handles signals while it serves, and raises them again for us when it is done: then this changes
        # nothing, and the worker is stopped in order instead of the process being ended.
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    # What is there by now stays: looking through it for garbage again and again would be a third of a long list's time.
    gc.collect()
    gc.freeze()
    server.run(sockets=[listener])


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise Refusal(
            f"Cannot listen on {settings.host} port {settings.port} ({error.strerror or error}). Choose another --port "
            "(0 takes a free one) or --host."
        ) from error
    # asyncio sets this on sockets that it makes itself only. Without it the second answer on a connection waits 40 ms, for
    # the client to acknowledge the head before the body is sent.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _require_keys_for_strangers(settings: Settings, database: Database) -> None:
    if not keys_required(settings):
        return
    with database.read() as session:
        if any_valid_key(session):
            return
    raise Refusal(
        f"Serving on {settings.host} needs API keys and there are none, so everybody would be locked out. Make one with "
        "`pennyweightd keys create NAME`, or serve on 127.0.0.1 without keys."
    )


def _announce(settings: Settings, what: str) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"Pennyweight is ready: http://{host}:{settings.port}  ({what}; Ctrl-C stops it)", flush=True)
