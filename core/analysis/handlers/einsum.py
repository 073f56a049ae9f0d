"""einsum: letters are axes. Equal letters are tied, letters that the output lacks are contracted.

    "bhqd,bhkd->bhqk"    b, h, q, k pass; d is tied between both operands and summed over
    "...ij,...jk"        the dots stand for broadcast axes, as in a matrix product

A letter twice in one operand (a diagonal) is not covered: everything that the call touches is frozen.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from core.analysis.context import Call, Recorder, UnlabelledOperator
from core.analysis.values import Labels, Value


@dataclass(frozen=True)
class Equation:
    """One axis name per axis of every operand and of the result: a letter, or an int for an axis of the dots.

    Axes of the dots are numbered from the right, −1 is the last, so that they broadcast as usual.
    """

    operands: tuple[tuple[str | int, ...], ...]
    output: tuple[str | int, ...]

    @staticmethod
    def of(equation: str, ranks: list[int]) -> Equation:
        left, arrow, right = equation.replace(" ", "").partition("->")
        terms = left.split(",")
        if len(terms) != len(ranks):
            raise UnlabelledOperator(f"einsum of {len(ranks)} tensors with the equation {equation!r}")
        operands = tuple(_axes(term, rank) for term, rank in zip(terms, ranks, strict=True))
        dots = max(
            (-min((name for name in names if isinstance(name, int)), default=0) for names in operands), default=0
        )
        if arrow:
            return Equation(operands, _axes(right, len(right.replace("...", "")) + (dots if "..." in right else 0)))
        letters = Counter(letter for term in terms for letter in term.replace("...", ""))
        once = sorted(letter for letter, count in letters.items() if count == 1)
        return Equation(operands, (*range(-dots, 0), *once))


def _axes(term: str, rank: int) -> tuple[str | int, ...]:
    before, dots, after = term.partition("...")
    count = rank - len(before) - len(after)
    if count < 0 or (count and not dots):
        raise UnlabelledOperator(f"einsum term {term!r} for a tensor with {rank} axes")
    return (*before, *range(-count, 0), *after)


def einsum(recorder: Recorder, call: Call) -> Value:
    """Any number of operands; the result has the axes that the equation names."""
    operands: list[Value] = list(call["tensors"])
    if call.get("path") is not None:
        raise UnlabelledOperator("einsum with a contraction path")
    equation = Equation.of(call["equation"], [operand.rank for operand in operands])
    if any(len(set(names)) < len(names) for names in equation.operands):
        raise UnlabelledOperator("einsum along a diagonal")
    joined: dict[str | int, Labels | None] = {}
    for name in dict.fromkeys(name for names in equation.operands for name in names):
        holders = [
            (index, axis)
            for index, names in enumerate(equation.operands)
            for axis, own in enumerate(names)
            if own == name and operands[index].shape[axis] > 1
        ]
        vectors = [operands[index].vector(axis) for index, axis in holders]
        joined[name] = recorder.join(vectors, "einsum with an axis that cannot be sliced")
        if name not in equation.output and holders:
            index, axis = holders[0]
            recorder.read("tensors", axis, vectors[0], index)
            if joined[name] is not None and len(holders) > 1:
                # A sum over a single position would be no product any more: one of each half stays.
                half = len(joined[name]) // 2
                recorder.piece(joined[name][:half], f"[{name}, first half]")
                recorder.piece(joined[name][half:], f"[{name}, second half]")
    _count(recorder, equation, operands, joined)
    return Value(call.shape, {axis: joined[name] for axis, name in enumerate(equation.output)})


def _count(
    recorder: Recorder, equation: Equation, operands: list[Value], joined: dict[str | int, Labels | None]
) -> None:
    """Multiply-accumulates as PyTorch computes it: pair by pair from the left; a pair without a sum is no product.

    What a later operand and the output do not need is summed as soon as it can be; where only one of a pair has an axis
    that is to be summed, it is summed before the product.
    """
    sizes = [
        {name: size for name, size in zip(names, operand.shape, strict=True) if size > 1}
        for names, operand in zip(equation.operands, operands, strict=True)
    ]
    held = sizes[0]
    for index, other in enumerate(sizes[1:], start=1):
        later = {name for names in equation.operands[index + 1 :] for name in names} | set(equation.output)
        summed = {name for name in (*held, *other) if name not in later}
        shared = {name for name in summed if name in held and name in other}
        pair = {**held, **other}
        factors = [name for name in pair if name not in summed or name in shared]
        if shared:
            vectors = [joined[name] for name in factors if joined[name] is not None]
            recorder.macs(math.prod(pair[name] for name in factors if joined[name] is None), vectors)
        held = {name: size for name, size in pair.items() if name not in summed}


HANDLERS = {"einsum": einsum}
