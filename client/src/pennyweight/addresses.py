"""What may become part of a URL: the address of a service, and ids."""

from __future__ import annotations

import re

import httpx

from pennyweight.errors import InvalidAddress

DEFAULT_URL = "http://127.0.0.1:8000"


def check_address(url: str) -> None:
    """Raises InvalidAddress for what is no http(s) address."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidAddress(f"{url!r} is no address of a service ({error}); one looks like {DEFAULT_URL}") from error
    if parts.scheme not in ("http", "https") or not parts.host or not 0 <= (parts.port or 0) <= 65535:
        raise InvalidAddress(f"{url!r} is no address of a service; one looks like {DEFAULT_URL}")


def checked_id(text: str) -> str:
    """An id as it may stand in a path. Raises InvalidAddress for what could be read as another path."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", text):
        raise InvalidAddress(f"{text!r} is not an id; ids look like job_01J9Z3K4M5N6P7Q8R9S0T1V2W3")
    return text
