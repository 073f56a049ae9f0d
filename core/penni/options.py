"""The options of kernel sharing: what a request may say, and what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.budget import Constraint, Costs
from core.errors import EngineError
from core.penni.bases import Bases
from core.penni.coefficients import aims_of
from core.penni.pruning import ROUND_TO, Pruning
from core.penni.retraining import Alternation

_SHARE = {"type": "number", "minimum": 0.001, "maximum": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "unit": {
        "type": "string",
        "enum": ["column", "coefficient"],
        "default": "column",
        "description": (
            "What is pruned: whole (input channel, kernel) columns, which every runtime saves, or single coefficients, "
            "which count by nonzeros and in coded files."
        ),
    },
    "bases": {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 1024},
            {"type": "string", "const": "auto"},
            {
                "type": "object",
                "properties": {},
                "required": [],
                "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 1024},
            },
        ],
        "default": "auto",
        "description": (
            "Shared kernels per layer before pruning; auto takes enough for the budget to decide. An object gives "
            "numbers of single layers by name, the others being auto."
        ),
    },
    "energy": {
        "type": "number",
        "minimum": 0.01,
        "maximum": 1,
        "description": "Instead of a number: the fewest shared kernels that hold this share of the weights' square.",
    },
    "round_to": {
        "type": "integer",
        "minimum": 1,
        "maximum": 64,
        "default": ROUND_TO,
        "description": "Columns per layer are multiples of this; runtimes are slow on what is no multiple of 8 or 16.",
    },
    "sparse_params": {
        **_SHARE,
        "description": "An aim beside the budget: at most this share of the parameters, counted by nonzeros.",
    },
    "sparse_macs": {
        **_SHARE,
        "description": (
            "An aim beside the budget: at most this share of the multiply-accumulates, counted as if a runtime skipped "
            "every zero coefficient."
        ),
    },
    "recipe": {
        "type": "string",
        "enum": ["closed_form", "paper"],
        "default": "closed_form",
        "x-needs-labels": ["paper"],
        "description": (
            "How factors come to bear pruning: fitted to images, or trained in turn with an L1 penalty by labels, as "
            "published, and pruned by multiples of each layer's standard deviation."
        ),
    },
    "recipe_epochs": {
        "type": "integer",
        "minimum": 1,
        "maximum": 1000,
        "default": Alternation.epochs,
        "description": "Epochs of the published recipe before pruning.",
    },
    "penalty": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": Alternation.penalty,
        "description": "Of the published recipe: what the sum of magnitudes of the coefficients is multiplied by.",
    },
    "dead_channels": {
        "type": "string",
        "enum": ["exact", "lossy"],
        "default": "exact",
        "description": (
            "Which channels leave once nothing reads them or they say the same for every image: those whose leaving "
            "changes nothing, or also those whose leaving changes borders of images, before training."
        ),
    },
}


@dataclass(frozen=True)
class PenniConfig:
    """One field per option of `OPTIONS`."""

    unit: str = "column"
    bases: int | str | Mapping[str, int] = "auto"
    energy: float | None = None
    round_to: int = ROUND_TO
    sparse_params: float | None = None
    sparse_macs: float | None = None
    recipe: str = "closed_form"
    recipe_epochs: int = Alternation.epochs
    penalty: float = Alternation.penalty
    dead_channels: str = "exact"

    def __post_init__(self) -> None:
        if self.energy is not None and isinstance(self.bases, int):
            raise EngineError(
                "invalid_request",
                "Method option 'energy': it takes the place of a number of shared kernels, and bases says "
                f"{self.bases}. Leave out one of the two; an object of bases, for single layers, goes with energy.",
                param="/methods/0/energy",
            )

    @property
    def start(self) -> Bases:
        layers = dict(self.bases) if isinstance(self.bases, Mapping) else {}
        if self.energy is not None:
            return Bases(energy=self.energy, layers=layers)
        return Bases(int(self.bases)) if isinstance(self.bases, int) else Bases(layers=layers)

    @property
    def alternation(self) -> Alternation | None:
        """The published training; None where factors are fitted."""
        return Alternation(epochs=self.recipe_epochs, penalty=self.penalty) if self.recipe == "paper" else None

    @property
    def score(self) -> str:
        """What single coefficients are compared by (`core.penni.coefficients`)."""
        return "deviation" if self.recipe == "paper" else "magnitude"

    def pruning(self, constraints: Sequence[Constraint], original: Costs) -> Pruning:
        """original: what the aims are shares of."""
        return Pruning(
            constraints,
            aims_of(original, self.sparse_params, self.sparse_macs),
            bases=self.start,
            unit=self.unit,
            score=self.score,
            round_to=self.round_to,
            lossy=self.dead_channels == "lossy",
        )
