"""A wrong label rule never gets past the masked reference: every rule of note is broken on purpose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.analysis import analyse
from core.analysis.handlers import HANDLERS
from core.analysis.schema import bind, set_argument
from core.analysis.values import Value
from core.surgery import apply, verify
from tests.core.channel_networks import export, random_keep


class Network(nn.Module):
    def __init__(self, body, *layers: nn.Module, out: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.mixed = nn.Conv2d(16, 16, 1)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(out, 3)
        self._body = body

    def forward(self, x):
        return self.head(F.relu(self._body(self.mixed(F.relu(self.stem(x))), *self.layers)).mean((2, 3)))


def eca(x, conv):
    return x * torch.sigmoid(conv(x.mean((2, 3)).unsqueeze(1))).view(x.shape[0], -1, 1, 1)


def response_norm(x):
    g = x.norm(p=2, dim=(2, 3), keepdim=True)
    return x * (g / g.mean(1, keepdim=True)) + x


def shuffle(x):
    n, c, h, w = x.shape
    return torch.cat([x, x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)], 1)


def attention(x, *projections):
    q, k, v = (one(x).view(x.shape[0], 2, 8, -1).transpose(-2, -1) for one in projections)
    return F.scaled_dot_product_attention(q, k, v).transpose(-2, -1).reshape(x.shape)


def conv1d_passing(recorder, call):
    return Value(call.shape, dict(call["input"].labels))


def wrong_rows(genuine):
    """A split of channels whose free axis has its positions in the wrong order."""

    def handler(recorder, call):
        value = genuine(recorder, call)
        return Value(value.shape, {axis: np.roll(vector, 1) for axis, vector in value.labels.items()})

    return handler


def rolled(genuine, axis=1):
    def handler(recorder, call):
        value = genuine(recorder, call)
        if isinstance(value, tuple):
            return tuple(Value(one.shape, {**one.labels, axis: np.roll(one.labels[axis], 1)}) for one in value)
        return Value(value.shape, {**value.labels, axis: np.roll(value.labels[axis], 1)})

    return handler


def without_second(genuine):
    """Contracts without tying: the second operand keeps what the first loses."""

    def handler(recorder, call):
        ties = len(recorder.ties)
        value = genuine(recorder, call)
        del recorder.ties[ties:]
        return value

    return handler


def without_rewrites(genuine):
    def handler(recorder, call):
        count = len(recorder.rewrites)
        value = genuine(recorder, call)
        del recorder.rewrites[count:]
        return value

    return handler


def unfrozen(genuine):
    """Everything that the rule freezes is left free."""

    def handler(recorder, call):
        count = len(recorder.freezes)
        value = genuine(recorder, call)
        del recorder.freezes[count:]
        return value

    return handler


def built(name):
    """The network and the operator of one case."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(16, elementwise_affine=False)
    cases = {
        "channel attention": lambda: Network(eca, nn.Conv1d(1, 1, 3, padding=1)),
        "layer norm": lambda: Network(lambda x, n: n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm),
        "response norm": lambda: Network(response_norm),
        "softmax": lambda: Network(lambda x: x.softmax(1) * 9),
        "amax": lambda: Network(lambda x: x + x.amax(1, keepdim=True)),
        "group norm": lambda: Network(lambda x, n: n(x), nn.GroupNorm(1, 16, affine=False)),
        "shuffle": lambda: Network(shuffle, out=32),
        "cat": lambda: Network(lambda x: torch.cat([x, torch.tanh(x)], 1), out=32),
        "split": lambda: Network(lambda x: torch.cat([F.relu(one) * (i + 1) for i, one in enumerate(x.split(8, 1))], 1)),
        "slice": lambda: Network(lambda x: torch.cat([x[:, 5:], x[:, :5] * 2], 1)),
        "add": lambda: Network(lambda x, c: x + c(x), nn.Conv2d(16, 16, 1)),
        "depthwise": lambda: Network(lambda x, c: c(x), nn.Conv2d(16, 16, 3, padding=1, groups=16)),
        "grouped": lambda: Network(lambda x, c: c(x), nn.Conv2d(16, 16, 3, padding=1, groups=2)),
        "batch norm": lambda: Network(lambda x, n: n(x), nn.BatchNorm2d(16)),
        "attention": lambda: Network(attention, *(nn.Conv2d(16, 16, 1) for _ in range(3))),
        "pixel shuffle": lambda: Network(lambda x: F.pixel_shuffle(x, 2), out=4),
        "flatten": lambda: Network(lambda x, p: p(x.flatten(1)).view(-1, 16, 1, 1), nn.Linear(16 * 36, 16)),
    }  # fmt: skip
    return export(cases[name](), 3, 6, 6)


SABOTAGE = {
    "channel attention passes": ("channel attention", "conv1d", lambda genuine: conv1d_passing),
    "layer norm passes": ("layer norm", "layer_norm", unfrozen),
    "mean of responses passes": ("response norm", "mean", unfrozen),
    "softmax passes": ("softmax", "softmax", unfrozen),
    "maximum passes": ("amax", "amax", unfrozen),
    "group norm passes": ("group norm", "group_norm", unfrozen),
    "shuffle by the wrong rows": ("shuffle", "view", wrong_rows),
    "cat off by one": ("cat", "cat", rolled),
    "split off by one": ("split", "split", rolled),
    "slice off by one": ("slice", "slice", rolled),
    "slice borders stay": ("slice", "slice", without_rewrites),
    "addition without a tie": ("add", "add", without_second),
    "convolution without a tie": ("add", "conv2d", without_second),
    "batch norm without a tie": ("batch norm", "batch_norm", without_second),
    "number of groups stays": ("depthwise", "conv2d", without_rewrites),
    "grouped convolution without ties": ("grouped", "conv2d", without_second),
    "attention without ties": ("attention", "scaled_dot_product_attention", without_second),
    "attention with another scale": ("attention", "scaled_dot_product_attention", without_rewrites),
    "views keep their sizes": ("attention", "view", without_rewrites),
    "pixel shuffle without ties": ("pixel shuffle", "pixel_shuffle", without_second),
    "flatten by the wrong rows": ("flatten", "flatten", rolled),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_broken_rule_is_caught(monkeypatch, name):
    case, operator, broken = SABOTAGE[name]
    network = built(case)
    genuine = analyse(network)
    assert genuine.faults == ()
    keep = random_keep(genuine, np.random.default_rng(0))
    assert verify(network, genuine, keep, apply(network, genuine, keep)).passed
    monkeypatch.setitem(HANDLERS, operator, broken(HANDLERS[operator]))
    wrong = analyse(network)
    for seed in range(3):
        keep = random_keep(wrong, np.random.default_rng(seed))
        pruned = apply(network, wrong, keep)
        for node in pruned.graph.nodes:
            # The sizes that make the wrong result run at all.
            if node.op == "call_function" and "layer_norm" in node.name:
                set_argument(node, "normalized_shape", [node.meta["value"].shape[-1]])
        result = verify(network, wrong, keep, pruned, seed=seed)
        assert not result.passed, (name, seed, result)
        assert result.problem is not None or result.max_relative_error > 1e-4


def test_a_survivors_rule_that_forgets_to_tell_the_reference_is_caught(monkeypatch):
    genuine = HANDLERS["softmax"]

    def forgetful(recorder, call):
        value = genuine(recorder, call)
        recorder.subsets.clear()
        return value

    network = built("softmax")
    monkeypatch.setitem(HANDLERS, "softmax", forgetful)
    analysis = analyse(network, survivors=True)
    keep = random_keep(analysis, np.random.default_rng(0))
    assert not verify(network, analysis, keep, apply(network, analysis, keep)).passed


def test_a_wrong_normalised_shape_is_caught():
    """The reference takes the shape from the channels that are left, not from the literal of the pruned network."""
    network = built("layer norm")
    analysis = analyse(network, survivors=True)
    keep = random_keep(analysis, np.random.default_rng(0))
    pruned = apply(network, analysis, keep)
    assert verify(network, analysis, keep, pruned).passed
    (norm,) = [node for node in pruned.graph.nodes if node.name.startswith("layer_norm")]
    set_argument(norm, "normalized_shape", bind(network_norm(network))["normalized_shape"])
    result = verify(network, analysis, keep, pruned)
    assert not result.passed and "layer" in result.problem


def network_norm(network):
    return next(node for node in network.graph.nodes if node.name.startswith("layer_norm"))
