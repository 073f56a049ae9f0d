"""The rows of the report say how many channels a layer has, whatever the size of its images."""

import torch

from core.analysis import profile
from core.budget import Budget, Cap
from core.choice import Chooser
from core.report import layer_rows
from tests.core.channel_networks import export


def test_a_batch_norm_with_as_many_numbers_as_pixels_in_a_row_is_as_wide_as_its_channels():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 4, 1))
    network = export(module, 3, 16, 16)
    before = profile(network)
    constraints = Budget((Cap("params", max_ratio=0.99),)).constraints(before.costs)
    choice = Chooser(network, {"type": "magnitude"}, seed=0).choose(constraints)
    rows = {row["name"]: row for row in layer_rows(before, before, choice.plan)}
    assert rows["1"]["before"]["params"] == 16
    assert rows["1"]["before"]["out"] == 8
