"""Consoles for both command lines. Names and messages come from users: text is printed as it is, never as markup."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def console(*, stderr: bool = False) -> Console:
    """Standard output or error, without markup, emoji codes and guessed highlights; style with `rich.text.Text`."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def print_error(err: Console, message: str) -> None:
    """One message with its prefix, red on a terminal."""
    err.print(Text.assemble(("error:", "bold red"), f" {message}"), soft_wrap=True)
