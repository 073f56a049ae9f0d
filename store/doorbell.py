"""The doorbell: a message to a queue says "there is work for you", and nothing more.

The database knows which work; a message that is lost, doubled or late costs nothing but time, because every worker also
looks by itself now and then. So ringing never fails and never waits: a thread of its own asks the database how many jobs
wait on which queue, and puts as many messages there as are missing. Whatever the broker does, nobody who creates a job
notices.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from store.database import Database
from store.demand import waiting_jobs
from store.queue import ANY_QUEUE

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Connection

logger = logging.getLogger(__name__)

TASK_NAME = "pennyweight.doorbell"
QUEUES = (ANY_QUEUE, "cpu", "gpu")
SCHEMES = ("redis", "rediss")
KEY_PREFIX = "pennyweight:"
MOST_MESSAGES = 64
"""On all queues together: a worker that answers one goes on until nothing is left, so more would wake nobody."""
CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 5.0


class NoQueue(Exception):
    """PENNYWEIGHT_QUEUE_URL cannot be used; the message says what to do."""


def celery_app(queue_url: str) -> Celery:
    """The Celery application of API and workers: early acknowledgement, no results, messages of plain JSON.

    Queues hang on no exchange, so that a Redis that was emptied needs no declarations before it takes messages again.
    Raises NoQueue.
    """
    if urlsplit(queue_url).scheme not in SCHEMES:
        raise NoQueue("PENNYWEIGHT_QUEUE_URL must be a redis: or rediss: URL such as redis://:password@host:6379/0.")
    try:
        from celery import Celery
        from kombu import Exchange, Queue
    except ImportError as error:
        raise NoQueue(
            f"PENNYWEIGHT_QUEUE_URL is set and Celery is not installed ({error}). Run: pip install 'pennyweight-server[celery]'"
        ) from error
    app = Celery("pennyweight", broker=queue_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=CONNECT_TIMEOUT_S,
        broker_transport_options={
            "global_keyprefix": KEY_PREFIX,
            "health_check_interval": 25,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_keepalive": True,
            "visibility_timeout": 3600,
        },
        task_acks_late=False,
        task_create_missing_queues=False,
        task_default_queue=ANY_QUEUE,
        task_ignore_result=True,
        task_queues=[Queue(name, Exchange("", type="direct"), routing_key=name) for name in QUEUES],
        task_serializer="json",
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
    )
    return app


class Doorbell:
    """Rings for whatever waits. As a context manager it has a thread; make it where it is used, never before a fork."""

    def __init__(self, database: Database, queue_url: str) -> None:
        """Raises NoQueue."""
        self._database = database
        self._app = celery_app(queue_url)
        self._rung = threading.Event()
        self._stopping = False
        self._working = True
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="doorbell", daemon=True)

    def __enter__(self) -> Doorbell:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._rung.set()
        # A broker that does not answer is waited for no longer than it takes to give up on it.
        self._thread.join(ANSWER_TIMEOUT_S)

    def ring(self) -> None:
        """There may be work: returns at once, whatever state the broker is in."""
        self._rung.set()

    def _run(self) -> None:
        while True:
            self._rung.wait()
            self._rung.clear()
            if self._stopping:
                self._disconnect()
                return
            try:
                self._send()
                if not self._working:
                    logger.info("The queue answers again.")
                self._working = True
            except Exception:  # a broker's client raises what it likes; this thread must live to try again
                self._disconnect()
                if self._working:
                    logger.warning("Workers could not be told about work; they find it by themselves.", exc_info=True)
                self._working = False

    def _send(self) -> None:
        waiting = waiting_jobs(self._database, MOST_MESSAGES)
        if not waiting:
            return
        if self._connection is None:
            self._connection = self._app.connection_for_write()
            self._connection.transport_options["socket_timeout"] = ANSWER_TIMEOUT_S
            self._connection.transport_options["max_retries"] = 1
        channel = self._connection.default_channel
        producer = self._app.amqp.Producer(channel, auto_declare=False)
        for queue, jobs in waiting.items():
            there = channel.queue_declare(queue=queue).message_count
            for _ in range(jobs - there):
                self._app.send_task(
                    TASK_NAME, queue=queue, exchange="", routing_key=queue, producer=producer, retry=False
                )

    def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            try:
                connection.collapse()
            except Exception:  # it is broken, which is why it is closed
                logger.debug("The broken connection to the queue could not be closed in order.", exc_info=True)
