"""What an architecture is, and what a family of them offers to the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from core.architectures.arguments import check_args
from core.architectures.matching import compare
from core.errors import EngineError

Args = Mapping[str, Any]
State = Mapping[str, Tensor]


@contextmanager
def without_values() -> Iterator[None]:
    """Modules built here get their parameters on the meta device: named and shaped, but neither stored nor initialised.

    Buffers are real, unlike under `torch.device("meta")`: a constructor may compute with them, and those that no
    state_dict holds (index tables, masks) are part of the function.
    """

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(emptied)
    try:
        yield
    finally:
        handle.remove()


def _as_stored(module: nn.Module, state: State) -> State:
    return state


def _as_trained(module: nn.Module) -> nn.Module:
    return module


@dataclass(frozen=True)
class Architecture:
    """One name that a user can give.

    args_schema: JSON schema of `architecture_args`, with a default for every property that is not inferred alone.
    infer: (state_dict, arguments given by the user) → arguments that the shapes tell and that agree with the given
    ones; never raises, leaves out what it cannot tell.
    construct: the module for complete arguments; raises ValueError where they contradict each other.
    input_shape: shape of one input, without the batch dimension, for complete arguments.
    renamed: (module, state_dict that does not fit it) → the same values under the names that the module has today.
    for_inference: the loaded module without the heads that only training runs.
    size_argument: the argument that must agree with the height and width of the input, where there is one.
    """

    name: str
    title: str
    args_schema: Mapping[str, Any]
    infer: Callable[[State, Args], dict[str, Any]]
    construct: Callable[[Args], nn.Module]
    input_shape: Callable[[Args], tuple[int, ...]]
    renamed: Callable[[nn.Module, State], State] = _as_stored
    for_inference: Callable[[nn.Module], nn.Module] = _as_trained
    size_argument: str | None = None

    def defaults(self) -> dict[str, Any]:
        properties = self.args_schema["properties"]
        return {name: schema["default"] for name, schema in properties.items() if "default" in schema}

    def resolve(self, args: Args, state: State | None = None) -> dict[str, Any]:
        """Complete arguments: given by the user, else inferred from the shapes in `state`, else the default."""
        check_args(self.name, self.args_schema, args)
        inferred = self.infer(state, args) if state is not None else {}
        return {**self.defaults(), **inferred, **args}

    def build(self, resolved: Args) -> nn.Module:
        """The module for complete arguments. Raises EngineError("architecture_mismatch") where they cannot be."""
        try:
            return self.construct(resolved)
        except ValueError as error:
            raise EngineError("architecture_mismatch", f"{self.name}: {error}", param="/architecture_args") from error

    def build_empty(self, resolved: Args) -> nn.Module:
        """The same without values, to compare names and shapes with, or to load into.

        With values where the constructor needs them: some run a part of the network to see what comes out.
        """
        try:
            with without_values():
                return self.build(resolved)
        except EngineError:
            return self.build(resolved)

    def fits(self, state: State) -> bool:
        """Whether `state` has exactly the names and shapes of this architecture, arguments inferred."""
        return not compare(self.build_empty(self.resolve({}, state)).state_dict(), state)


class Family(Protocol):
    """Architectures that are named, looked up and recognised together. Looking at names must import no library."""

    def names(self) -> Sequence[str]:
        """Every name, in the order in which a person would list them."""

    def get(self, name: str) -> Architecture:
        """The architecture of one of the names."""

    def fitting(self, state: State) -> list[str]:
        """Names whose keys and shapes are exactly those of `state`, the likeliest first."""


@dataclass(frozen=True)
class OwnFamily:
    """A handful of architectures that this package defines itself."""

    architectures: tuple[Architecture, ...]

    def names(self) -> list[str]:
        return [architecture.name for architecture in self.architectures]

    def get(self, name: str) -> Architecture:
        return next(architecture for architecture in self.architectures if architecture.name == name)

    def fitting(self, state: State) -> list[str]:
        return [architecture.name for architecture in self.architectures if architecture.fits(state)]
