"""Which size of an exported program stands for its images."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from core.intake.pt2 import read_pt2


class Attention(nn.Module):
    """A class token, positions first, heads merged with the images, and windows merged with them."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, 3)
        self.train(False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        images = image.shape[0]
        features = self.patch(image)
        windows = features.view(images, 8, 2, 2, 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(images * 4, 4, 8)
        mask = features.new_zeros((4, 4, 4)) + torch.arange(4.0).view(4, 1, 1)
        q, k, v = self.qkv(windows).view(images * 4, 4, 3, 8).permute(2, 0, 1, 3).unbind(0)
        weights = (q @ k.transpose(1, 2)).view(images, 4, 4, 4) + mask
        windows = (weights.view(-1, 4, 4).softmax(-1) @ v).view(images, 16, 8)
        tokens = torch.cat([self.token.expand(images, -1, -1), windows, self.token.repeat(images, 1, 1)], 1)
        sequence = tokens.transpose(0, 1)
        heads = sequence.reshape(18, images * 2, 4).transpose(0, 1)
        mixed = (heads @ heads.transpose(1, 2)).softmax(-1) @ heads
        mixed = mixed.transpose(0, 1).reshape(18, images, 8)
        return self.head(mixed.permute(1, 0, 2).mean(1))


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_every_layout_of_images_is_read(batch):
    torch.manual_seed(0)
    module = Attention()
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(module, (torch.zeros(batch, 3, 16, 16),)), buffer)
    network = read_pt2(memoryview(buffer.getvalue()))
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network.run(images)[0], module(images), rtol=1e-4, atol=1e-5)
