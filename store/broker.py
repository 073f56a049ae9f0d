"""Is the broker there? Nothing depends on it but how soon workers hear of new work."""

from __future__ import annotations

import logging

from store.errors import StoreError

logger = logging.getLogger(__name__)

TIMEOUT_S = 1.5


class BrokerDown(StoreError):
    """The broker cannot be asked. The message is for strangers too: it names no address."""


def ping(queue_url: str) -> None:
    """Raises BrokerDown."""
    try:
        import redis  # an extra, and slow to import
    except ImportError as error:
        raise BrokerDown(
            f"PENNYWEIGHT_QUEUE_URL is set and its library is not installed ({error}). "
            "Run: pip install 'pennyweight-server[celery]'"
        ) from error
    try:
        with redis.Redis.from_url(queue_url, socket_connect_timeout=TIMEOUT_S, socket_timeout=TIMEOUT_S) as client:
            client.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        logger.warning("The broker does not answer: %s", error)
        raise BrokerDown("The broker does not answer; workers hear of new work when they next look.") from error
