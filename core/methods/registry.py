"""The methods by name: every module of this package that defines `METHOD`. Adding one means adding its file."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache

import core.methods
from core.errors import EngineError
from core.methods.method import Method, MethodInfo, RewritingMethod


def get_method(name: str) -> Method | RewritingMethod:
    """The method called `name`. Raises EngineError with the nearest names on a miss."""
    methods = _methods()
    if name not in methods:
        near = difflib.get_close_matches(name, methods, n=3) or list(methods)
        raise EngineError(
            "invalid_request", f"There is no method {name!r}; did you mean {', '.join(near)}?", param="/methods/0/type"
        )
    return methods[name]


def method_infos() -> list[MethodInfo]:
    """Every method, by name, as the service's catalogue shows it."""
    return [method.info() for method in _methods().values()]


@cache
def _methods() -> dict[str, Method | RewritingMethod]:
    names = sorted(module.name for module in pkgutil.iter_modules(core.methods.__path__, "core.methods."))
    found = [getattr(importlib.import_module(name), "METHOD", None) for name in names]
    return {method.type: method for method in found if method is not None}
