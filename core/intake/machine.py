"""An interpreter for the pickles inside checkpoints that cannot run anything.

A pickle is a program for a stack machine. Python's own machine imports and calls whatever the program names; this one
knows the operations that build containers, scalars and strings, and the symbols of `core.intake.symbols`, whose
constructors are ours. Everything else is refused by name before anything is built from it.

    interpret(Window(b"\\x80\\x02}q\\x00X\\x01\\x00\\x00\\x00aK\\x01s."))  →  {"a": 1}

It is bounded in bytes (the window), in operations and in depth, hashes only scalars, and never walks what it has built, so
that a memo that doubles itself costs nothing.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from core.errors import EngineError
from core.intake.refusals import damaged, invalid, too_large, unsafe
from core.intake.symbols import SYMBOLS, Constructor, NumpyDtype, hashable
from core.intake.window import Window

MAX_PICKLE_BYTES = 64 << 20
MAX_OPERATIONS = 2_000_000
MAX_DEPTH = 256

PersistentId = Callable[[object], Any]


def interpret(view: memoryview, *, what: str, persistent_id: PersistentId | None = None) -> tuple[Any, int]:
    """The value of the pickle at the start of `view`, and the number of bytes that it takes.

    what: names the pickle in errors, e.g. "archive/data.pkl". persistent_id: gives the value of a persistent id, or
    raises ValueError. Raises EngineError: unsafe_model for a forbidden name or operation, invalid_model, too_large.
    """
    window = Window(view, max_read_bytes=MAX_PICKLE_BYTES, what=f"One value in {what}")
    machine = _Machine(what, persistent_id)
    operations = 0
    try:
        for operation, argument, position in pickletools.genops(window):
            operations += 1
            if operations > MAX_OPERATIONS or window.tell() > MAX_PICKLE_BYTES:
                raise too_large(
                    f"{what} has more than {MAX_OPERATIONS} operations or {MAX_PICKLE_BYTES >> 20} MiB: "
                    f"it holds much more than weights."
                )
            machine.position = position
            if operation.name == "STOP":
                return machine.result(), window.tell()
            machine.step(operation.name, argument)
    except EngineError:
        raise
    except (ValueError, OverflowError, TypeError) as error:
        raise damaged(f"{what} is malformed near byte {window.tell()}: {str(error)[:200]}.") from error
    raise damaged(f"{what} ends before its pickle does.")


class _Machine:
    """Stack, marks and memo. Values are plain Python objects; only this module puts anything on the stack."""

    def __init__(self, what: str, persistent_id: PersistentId | None) -> None:
        self.position = 0
        self._what = what
        self._persistent_id = persistent_id
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        handler = _OPERATIONS.get(name)
        if handler is None:
            named = f" for {argument!r}"[:200] if isinstance(argument, str) else ""
            raise unsafe(
                f"{self._what} uses the pickle operation {name}{named}, which a state_dict does not need.",
                details={"operation": name},
            )
        try:
            handler(self, argument)
        except ValueError as error:
            raise invalid(f"{self._what} is malformed at byte {self.position} ({name}): {error}.") from error

    def result(self) -> Any:
        if len(self._stack) != 1 or self._marks:
            raise invalid(f"{self._what} is malformed: it ends with {len(self._stack)} values instead of one.")
        return self._stack[0]

    # Stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("the stack is empty")
        return self._stack.pop()

    def _top(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("the stack is empty")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise ValueError("there is no mark")
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _mark(self, argument: Any) -> None:
        if len(self._marks) >= MAX_DEPTH:
            raise unsafe(f"{self._what} nests deeper than {MAX_DEPTH} levels.")
        self._marks.append(len(self._stack))

    # Scalars and containers

    def _nothing(self, argument: Any) -> None:
        """PROTO and FRAME carry no value; every version of the protocol is decoded alike."""

    def _literal(self, argument: Any) -> None:
        self._push(argument)

    def _python2_text(self, argument: str) -> None:
        raw = argument.encode("latin-1")
        try:
            self._push(raw.decode("utf-8"))
        except UnicodeDecodeError:
            self._push(argument)

    def _tuple_of(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(items)))

    def _tuple(self, argument: Any) -> None:
        self._push(tuple(self._pop_to_mark()))

    def _list(self, argument: Any) -> None:
        self._push(self._pop_to_mark())

    def _dict(self, argument: Any) -> None:
        items = self._pop_to_mark()
        self._push({})
        self._set_items(items)

    def _frozenset(self, argument: Any) -> None:
        items = self._pop_to_mark()
        self._require_hashable(items)
        self._push(frozenset(items))

    def _append(self, argument: Any) -> None:
        self._extend([self._pop()])

    def _appends(self, argument: Any) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise ValueError("only a list can be appended to")
        target.extend(items)

    def _add_items(self, argument: Any) -> None:
        items = self._pop_to_mark()
        target = self._top()
        if type(target) is not set:
            raise ValueError("only a set can be added to")
        self._require_hashable(items)
        target.update(items)

    def _set_item(self, argument: Any) -> None:
        value = self._pop()
        self._set_items([self._pop(), value])

    def _set_marked_items(self, argument: Any) -> None:
        self._set_items(self._pop_to_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) not in (dict, OrderedDict):
            raise ValueError("only a dictionary can be filled")
        if len(items) % 2:
            raise ValueError("a key has no value")
        self._require_hashable(items[::2])
        target.update(zip(items[::2], items[1::2], strict=True))

    def _require_hashable(self, items: list[Any]) -> None:
        for item in items:
            if not hashable(item):
                raise ValueError(f"a key of type {type(item).__name__} is not a scalar")

    # Memo

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()

    def _memoize(self, argument: Any) -> None:
        self._memo[len(self._memo)] = self._top()

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise ValueError(f"memo {index} is empty")
        self._push(self._memo[index])

    # Symbols

    def _global(self, name: str) -> None:
        if name not in SYMBOLS:
            raise self._forbidden(name)
        self._push(SYMBOLS[name])

    def _stack_global(self, argument: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a global is named by two strings")
        self._global(f"{module} {name}")

    def _forbidden(self, name: str) -> EngineError:
        dotted = name[:200].replace(" ", ".")
        kind = f"{self._what} asks for {dotted!r}, which no state_dict needs."
        if name.startswith(("torch.nn.", "torch.jit", "torch.fx", "__main__ ", "torchvision.", "timm.", "models.")):
            kind = f"{self._what} holds a whole pickled module or another object of a class ({dotted!r}), not only weights."
        return unsafe(kind, details={"global": dotted})

    def _reduce(self, argument: Any) -> None:
        arguments, constructor = self._pop(), self._pop()
        if not isinstance(constructor, Constructor):
            raise ValueError(f"a value of type {type(constructor).__name__} cannot be called")
        if type(arguments) is not tuple:
            raise ValueError(f"the arguments of {constructor.name} are not a tuple")
        try:
            self._push(constructor.construct(*arguments))
        except TypeError as error:
            raise ValueError(f"{constructor.name} cannot take {len(arguments)} such arguments") from error

    def _build(self, argument: Any) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, NumpyDtype):
            target.set_state(state)
        elif type(target) is not OrderedDict:
            raise ValueError(f"attributes cannot be set on a value of type {type(target).__name__}")
        # What is set on an ordered dictionary is `_metadata`, the versions of the modules, which nothing here reads.

    def _persistent(self, argument: Any) -> None:
        if self._persistent_id is None:
            raise ValueError("there are no storages here to refer to")
        self._push(self._persistent_id(self._pop()))


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: machine._push(make())


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _Machine._nothing),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Machine._literal),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine._literal),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _Machine._literal),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _Machine._python2_text),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_SET": _constant(set),
    "MARK": _Machine._mark,
    "TUPLE": _Machine._tuple,
    "TUPLE1": lambda machine, argument: machine._tuple_of(1),
    "TUPLE2": lambda machine, argument: machine._tuple_of(2),
    "TUPLE3": lambda machine, argument: machine._tuple_of(3),
    "LIST": _Machine._list,
    "DICT": _Machine._dict,
    "FROZENSET": _Machine._frozenset,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "ADDITEMS": _Machine._add_items,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_marked_items,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine._put),
    "MEMOIZE": _Machine._memoize,
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine._get),
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    # NEWOBJ calls a class's __new__ with a tuple; for the symbols here that is the same as calling the symbol.
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine._reduce),
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
}
