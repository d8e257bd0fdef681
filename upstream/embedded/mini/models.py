"""Two plain masked image models on timm's ViT blocks.

`SimMIM` puts a mask token in place of every masked patch and lets the encoder see all of them.
`MAE` shows the encoder the visible patches only; a small decoder gets the mask tokens.
Shapes: B images, N patches in row-major order, D channels. Masks are bool [B, N], True = masked.
"""

from __future__ import annotations

import argparse

import torch
from einops import rearrange
from timm.models.vision_transformer import Block
from torch import Tensor, nn


def make_positions(dim: int, grid: int) -> nn.Buffer:
    """Fixed 2-D position embedding [grid * grid, dim]: half the channels code the row, half the
    column, each as sines and cosines of dim / 4 geometric frequencies."""
    frequency = 10000.0 ** (-torch.arange(dim // 4) / (dim // 4))
    angle = torch.arange(grid)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    row, column = axis.repeat_interleave(grid, dim=0), axis.repeat(grid, 1)
    return nn.Buffer(torch.cat([row, column], dim=1), persistent=False)


def make_blocks(
    dim: int, depth: int, num_heads: int, mlp_ratio: float, drop_path: float = 0.0
) -> nn.ModuleList:
    """Pre-norm transformer blocks, stochastic depth rising linearly to `drop_path`."""
    rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
    return nn.ModuleList(
        Block(dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=True, drop_path=rate) for rate in rates
    )


def squared_cosine(features: Tensor) -> Tensor:
    """Mean squared cosine between the images' features [B, D], each with each and with itself.

    The uniformity term of U-MAE (arXiv 2210.08344): least where all directions are used alike.
    """
    unit = nn.functional.normalize(features.float(), dim=-1)
    return (unit @ unit.T).square().mean()


class MaskedImageModel(nn.Module):
    """What both styles share: patches, encoder blocks, the pixel loss, and features.

    A style adds `predict(images, mask)`: pixels of every patch, [B, N, patch_size**2 * 3], and the
    encoder's cls token, [B, D]. `args` are those of main_pretrain.py. The encoder's `blocks` get
    [B, 1 + tokens, D], cls first.
    """

    loss_power: int  # 1: L1, 2: MSE

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.patch_size, self.grid = args.patch_size, args.img_size // args.patch_size
        self.norm_pix_loss = args.norm_pix_loss
        self.uniformity, self.mask_token_std = args.uniformity, args.mask_token_std

        dim, heads = args.embed_dim, args.num_heads
        self.patch_embed = nn.Conv2d(3, dim, args.patch_size, args.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = make_positions(dim, self.grid)
        self.blocks = make_blocks(dim, args.depth, heads, args.mlp_ratio, args.drop_path)
        self.norm = nn.LayerNorm(dim)

    def init_weights(self) -> None:
        """Xavier for linear layers and patch embedding, normal (std 0.02 by default) for tokens."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith("_token"):
                std = self.mask_token_std if name == "mask_token" else 0.02
                nn.init.normal_(parameter, std=std)

    def patchify(self, images: Tensor) -> Tensor:
        """Cut images [B, 3, H, W] into flat patches [B, N, patch_size**2 * 3]."""
        p = self.patch_size
        return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)

    def embed(self, images: Tensor) -> Tensor:
        """Patch tokens [B, N, D], without positions."""
        return self.patch_embed(images).flatten(2).transpose(1, 2)

    def encode(self, x: Tensor) -> Tensor:
        """Put the cls token first, run the encoder's blocks and the final norm."""
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def features(self, images: Tensor) -> Tensor:
        """Mean of the encoder's patch tokens [B, D] of the whole, unmasked image."""
        return self.encode(self.embed(images) + self.positions)[:, 1:].mean(dim=1)

    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict the masked patches of images [B, 3, H, W].

        Returns:
            loss (scalar, float32: mean over an image's masked patches, then over images; plus the
            uniformity term in training),
            prediction [B, N, patch_size**2 * 3], mask (bool [B, N]).
        """
        (prediction, cls), target = self.predict(images, mask), self.patchify(images)
        if self.norm_pix_loss:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        error = (prediction.float() - target).abs().pow(self.loss_power).mean(dim=-1)
        per_image = (error * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        loss = per_image.mean()
        if self.training and self.uniformity > 0:
            loss = loss + self.uniformity * squared_cosine(cls)
        return loss, prediction, mask


class SimMIM(MaskedImageModel):
    """Mask tokens inside the encoder, one linear layer as head, L1 loss (arXiv 2111.09886).

    Unlike in the original, positions are fixed sines and cosines: a short run need not learn them.
    """

    loss_power = 1

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, args.embed_dim))
        self.head = nn.Linear(args.embed_dim, self.patch_size**2 * 3)
        self.init_weights()

    def predict(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the image with its masked patches replaced by the mask token."""
        x = self.embed(images)
        x = torch.where(mask.unsqueeze(-1), self.mask_token.to(x.dtype), x)
        x = self.encode(x + self.positions)
        return self.head(x[:, 1:]), x[:, 0]


class MAE(MaskedImageModel):
    """Encoder on visible patches, decoder with mask tokens, MSE loss (arXiv 2111.06377).

    The `decoder_blocks` get [B, 1 + N, D'], cls first.
    """

    loss_power = 2

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        dim, heads = args.decoder_dim, args.decoder_num_heads
        self.decoder_embed = nn.Linear(args.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_positions = make_positions(dim, self.grid)
        self.decoder_blocks = make_blocks(dim, args.decoder_depth, heads, args.mlp_ratio)
        self.decoder_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, self.patch_size**2 * 3)
        self.init_weights()

    def predict(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the visible patches, fill in mask tokens, decode; every image must mask as many
        patches as the first."""
        visible_first = mask.int().argsort(dim=1, stable=True).unsqueeze(-1)
        num_masked = int(mask[0].sum())
        visible = visible_first[:, : mask.shape[1] - num_masked]
        x = (self.embed(images) + self.positions).take_along_dim(visible, dim=1)
        encoded = self.encode(x)
        x = self.decoder_embed(encoded)

        tokens = self.mask_token.to(x.dtype).expand(len(x), num_masked, -1)
        patches = torch.cat([x[:, 1:], tokens], dim=1)
        patches = patches.take_along_dim(visible_first.argsort(dim=1), dim=1)  # in image order
        x = torch.cat([x[:, :1], patches + self.decoder_positions], dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        return self.head(self.decoder_norm(x)[:, 1:]), encoded[:, 0]
