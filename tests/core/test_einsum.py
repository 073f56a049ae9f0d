"""einsum: free letters pass, contracted ones are tied, and its products are counted as PyTorch computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from core.analysis import analyse, profile
from core.network import Network
from core.surgery import apply, verify
from tests.core.channel_networks import counted_macs, export, random_keep

SIZES = {"b": 1, "h": 3, "i": 4, "j": 5, "k": 6, "l": 7, "z": 1}
EQUATIONS = [
    "bhik,bhjk->bhij",
    "bij,bjk->bik",
    "bij,jk",
    "b...j,jk->b...k",
    "bi,j->bij",
    "bij,bij->",
    "bij,bij->bi",
    "bi,bj->bij",
    "bij->bji",
    "bij->bi",
    "bij,j->bi",
    "bij,jk,kl->bil",
    "bj,bk,bl->jkl",
    "bhi,bhij->bhj",
    "bij,zj->bi",
    "zij,bjk->bik",
    "bzi,bjk->b",
    "bij,kl->b",
    "bii->b",
]


class Einsum(nn.Module):
    """The first operand is the input, the others are parameters."""

    def __init__(self, equation: str) -> None:
        super().__init__()
        terms = equation.partition("->")[0].replace("...", "hi").split(",")
        self.equation = equation
        self.shape = [SIZES[letter] for letter in terms[0]][1:]
        self.others = nn.ParameterList(torch.randn([SIZES[letter] for letter in term]) for term in terms[1:])

    def forward(self, x):
        return torch.einsum(self.equation, x, *self.others)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_products_are_counted_as_they_are_computed(equation):
    network = Network.from_module(Einsum(equation), {"input": Einsum(equation).shape})
    with FlopCounterMode(display=False) as counter:
        network.run(*network.random_inputs(1, 0))
    assert profile(network).costs.macs == counter.get_total_flops() // 2


class Mixture(nn.Module):
    """Three operands, dots and a sum of both: channels of all convolutions are free."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(3, 10, 1)
        self.mix = nn.Parameter(torch.randn(8, 10, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        a, b, c = (layer(x).flatten(2) for layer in (self.first, self.second, self.third))
        y = torch.einsum("bip,bip,bjp,ijk->bkp", a, b, c, self.mix)
        return self.head(torch.einsum("...p->...", torch.tanh(y)))


def test_contracted_letters_are_tied_across_all_operands():
    torch.manual_seed(0)
    network = export(Mixture(), 3, 4, 4)
    analysis = analyse(network)
    assert analysis.faults == ()
    owners = {group.label for group in analysis.groups}
    assert {"first", "third"} <= owners and "second" not in owners
    assert sum(len(group.components) for group in analysis.groups) == 8 + 10 + 6
    for seed in range(3):
        keep = random_keep(analysis, np.random.default_rng(seed), fraction=0.7)
        pruned = apply(network, analysis, keep)
        assert verify(network, analysis, keep, pruned).passed
        assert counted_macs(pruned) == analysis.costs(analysis.widths(keep)).macs


def test_a_diagonal_freezes_what_it_touches():
    class Diagonal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 1)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(torch.einsum("bcpp->bcp", self.stem(x)).mean(2))

    analysis = analyse(export(Diagonal(), 3, 4, 4))
    assert analysis.faults == ()
    assert analysis.groups == ()
    assert any("diagonal" in one.reason for one in analysis.frozen)
