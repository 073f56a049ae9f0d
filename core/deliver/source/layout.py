"""Laying out generated Python the way formatters do: on one line where it fits, else one item per line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

LINE_LENGTH = 88
INDENT = 4


@dataclass(frozen=True)
class Group:
    """Items between brackets: `head` ends with the opening bracket, `tail` begins with the closing one."""

    head: str
    items: tuple[Code, ...]
    tail: str


Code = str | Group


def call(callee: str, arguments: Iterable[Code] = (), keywords: Mapping[str, Code] | None = None) -> Group:
    named = (prefixed(f"{name}=", value) for name, value in (keywords or {}).items())
    return Group(f"{callee}(", (*arguments, *named), ")")


def list_of(items: Iterable[Code]) -> Group:
    return Group("[", tuple(items), "]")


def tuple_of(items: Iterable[Code]) -> Code:
    items = tuple(items)
    return f"({flat(items[0])},)" if len(items) == 1 else Group("(", items, ")")


def prefixed(prefix: str, code: Code) -> Code:
    """`name=`, `"key": ` or `target = ` before a piece of code."""
    return prefix + code if isinstance(code, str) else replace(code, head=prefix + code.head)


def flat(code: Code) -> str:
    """On one line, however long."""
    return code if isinstance(code, str) else code.head + ", ".join(map(flat, code.items)) + code.tail


def render(code: Code, indent: int) -> list[str]:
    """Lines of at most 88 characters where the code has brackets to break at."""
    return _render(code, indent, "")


def _render(code: Code, indent: int, suffix: str) -> list[str]:
    margin = " " * indent
    line = margin + flat(code) + suffix
    if isinstance(code, str) or not code.items or len(line) <= LINE_LENGTH:
        return [line]
    contents = " " * (indent + INDENT) + ", ".join(map(flat, code.items))
    if len(contents) <= LINE_LENGTH:
        return [margin + code.head, contents, margin + code.tail + suffix]
    comma = "" if len(code.items) == 1 and isinstance(code.items[0], Group) else ","
    inner = [line for item in code.items for line in _render(item, indent + INDENT, comma)]
    return [margin + code.head, *inner, margin + code.tail + suffix]
