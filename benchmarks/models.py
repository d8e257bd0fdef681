"""Models in the shapes of the recipes: what they compute on is noise, how much is as published."""

from __future__ import annotations

import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class SimMIM(nn.Module):
    """ViT-B/16 encoder with mask tokens, linear head: 13 depths of 196 tokens, 120 masked."""

    title, dim, prefix, pixels = "SimMIM ViT-B/16", 768, 1, 224
    batch_cpu, batch_cuda = 8, 128

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.create_model("vit_base_patch16_224", num_classes=0)
        self.mask_token = nn.Parameter(torch.randn(768) * 0.02)
        self.head = nn.Linear(768, 768)
        self.blocks = list(self.vit.blocks)

    @staticmethod
    def masks(batch: int) -> Tensor:
        """[B, 196]."""
        return torch.rand(batch, 196).argsort(1) < 120

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """A scalar loss."""
        x = self.vit.patch_embed(images)
        x = torch.where(mask[:, :, None], self.mask_token.to(x.dtype), x)
        x = self.vit.norm(self.vit.blocks(self.vit._pos_embed(x)))
        return self.head(x[:, 1:]).float().square().mean()


class MAE(nn.Module):
    """ViT-B/16 over 49 visible tokens, 512-d decoder: 9 depths of 196 tokens, 147 masked."""

    title, dim, prefix, pixels = "MAE ViT-B/16, decoder traced", 512, 1, 224
    batch_cpu, batch_cuda = 8, 128

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.create_model("vit_base_patch16_224", num_classes=0)
        self.embed = nn.Linear(768, 512)
        self.mask_token = nn.Parameter(torch.randn(512) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 197, 512) * 0.02)
        self.decoder = nn.Sequential(*(Block(512, 16, qkv_bias=True) for _ in range(8)))
        self.head = nn.Sequential(nn.LayerNorm(512), nn.Linear(512, 768))
        self.blocks = list(self.decoder)

    @staticmethod
    def masks(batch: int) -> Tensor:
        """[B, 196]."""
        return torch.rand(batch, 196).argsort(1) < 147

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """A scalar loss."""
        x = self.vit._pos_embed(self.vit.patch_embed(images))
        visible = mask.int().argsort(dim=1, stable=True)[:, : 196 - 147, None] + 1
        kept = torch.cat([torch.zeros_like(visible[:, :1]), visible], 1)  # cls token first
        shown = x.take_along_dim(kept, 1)
        shown = self.embed(self.vit.norm(self.vit.blocks(shown)))
        full = self.mask_token.to(shown.dtype).expand(len(mask), 197, -1)
        x = self.decoder(full.scatter(1, kept.expand_as(shown), shown) + self.position)
        return self.head(x[:, 1:]).float().square().mean()


class Swin(nn.Module):
    """Swin-B at 192 pixels, all 24 blocks traced: stage 1 has 2304 tokens of 128, 1408 masked."""

    title, dim, prefix, pixels = "SimMIM Swin-B, 192 px", 128, 0, 192
    batch_cpu, batch_cuda = 4, 64

    def __init__(self) -> None:
        super().__init__()
        name = "swin_base_patch4_window7_224"
        self.swin = timm.create_model(name, num_classes=0, img_size=192, window_size=6)
        self.mask_token = nn.Parameter(torch.randn(128) * 0.02)
        self.head = nn.Linear(1024, 1024)
        self.blocks = [block for stage in self.swin.layers for block in stage.blocks]

    @staticmethod
    def masks(batch: int) -> Tensor:
        """[B, 48, 48], in cells of 32 pixels."""
        cells = (torch.rand(batch, 36).argsort(1) < 22).unflatten(1, (6, 6))
        return cells.repeat_interleave(8, 1).repeat_interleave(8, 2)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """A scalar loss."""
        x = self.swin.patch_embed(images)
        x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        return self.head(self.swin.norm(self.swin.layers(x))).float().square().mean()


class Tiny(nn.Module):
    """Two linear blocks over 16 tokens of 8: to see that a benchmark runs."""

    title, dim, prefix, pixels = "tiny", 8, 1, 12
    batch_cpu, batch_cuda = 2, 2

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(27, 8)
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    @staticmethod
    def masks(batch: int) -> Tensor:
        """[B, 16]."""
        return torch.arange(16).lt(9).repeat(batch, 1)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """A scalar loss."""
        patches = images.unfold(2, 3, 3).unfold(3, 3, 3).transpose(1, 3).reshape(-1, 16, 27)
        x = self.embed(patches)
        x = self.blocks(torch.cat((x[:, :1], x), 1))
        return (x[:, 1:] * mask[:, :, None]).float().square().mean()


SHAPES = {"simmim": SimMIM, "mae": MAE, "swin": Swin, "tiny": Tiny}
