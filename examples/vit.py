"""A small vision transformer in plain PyTorch. Nothing here knows of stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ViT(nn.Module):
    """Patches, positions, encoder layers, and a head on the class token.

    Args:
        size: of the square images, in pixels.
        channels: of the images.
        num_classes: that the head tells apart.
        width: of the residual stream.
        num_blocks: encoder layers; each has ``num_heads`` attention heads.
        patch: side of the squares that images are cut into, in pixels.
        dropout: probability of dropping an element of what a layer adds.
    """

    def __init__(  # noqa: PLR0913
        self,
        *,
        size: int = 8,
        channels: int = 1,
        num_classes: int = 10,
        width: int = 64,
        num_blocks: int = 4,
        num_heads: int = 4,
        patch: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, num_heads, 4 * width, dropout=dropout, batch_first=True, norm_first=True
            )
            for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(rows, channels, size, size)`` to logits ``(rows, classes)``."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))
