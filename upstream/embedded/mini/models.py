"""Two plain masked image models on timm's ViT blocks.

`SimMIM` puts a mask token in place of every masked patch and lets the encoder see all of them.
`MAE` shows the encoder the visible patches only; a small decoder gets the mask tokens.
Shapes: B images, N patches in row-major order, D channels. Masks are bool [B, N], True = masked.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn


def sincos_positions(dim: int, grid: int) -> Tensor:
    """Fixed 2-D position embedding [1, grid * grid, dim]: half the channels code the row, half
    the column, each as sines and cosines of dim / 4 geometric frequencies."""
    frequency = 10000.0 ** (-torch.arange(dim // 4) / (dim // 4))
    angle = torch.arange(grid)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    row = axis[:, None].expand(-1, grid, -1)
    column = axis[None].expand(grid, -1, -1)
    return torch.cat([row, column], dim=2).reshape(1, grid * grid, dim)


def make_blocks(
    dim: int, depth: int, num_heads: int, mlp_ratio: float, drop_path: float = 0.0
) -> nn.ModuleList:
    """Pre-norm transformer blocks, stochastic depth rising linearly to `drop_path`."""
    rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
    return nn.ModuleList(
        Block(dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=True, drop_path=rate) for rate in rates
    )


class MaskedImageModel(nn.Module):
    """What both styles share: patches, encoder blocks, the pixel loss, and features.

    Attributes:
        blocks: The encoder's transformer blocks; their input is [B, 1 + tokens, D], cls first.
        num_patches: N.
    """

    loss_power: int  # 1: L1, 2: MSE
    positions: Tensor  # [1, N, D]
    num_prefix_tokens = 1

    def __init__(
        self,
        *,
        img_size: int = 32,
        patch_size: int = 4,
        embed_dim: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        norm_pix_loss: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.grid = img_size // patch_size
        self.num_patches = self.grid**2
        self.norm_pix_loss = norm_pix_loss

        self.patch_embed = nn.Conv2d(3, embed_dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        positions = sincos_positions(embed_dim, self.grid)
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = make_blocks(embed_dim, depth, num_heads, mlp_ratio, drop_path)
        self.norm = nn.LayerNorm(embed_dim)

    def init_weights(self) -> None:
        """Xavier for linear layers and patch embedding, normal (std 0.02) for the tokens."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith("_token"):
                nn.init.normal_(parameter, std=0.02)

    def patchify(self, images: Tensor) -> Tensor:
        """Cut images [B, 3, H, W] into flat patches [B, N, patch_size**2 * 3]."""
        b, g, p = len(images), self.grid, self.patch_size
        cells = images.reshape(b, 3, g, p, g, p)
        return cells.permute(0, 2, 4, 3, 5, 1).reshape(b, g * g, p * p * 3)

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

    def loss(self, images: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """Error of the predicted pixels: mean over an image's masked patches, then over images."""
        target = self.patchify(images)
        if self.norm_pix_loss:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        error = (prediction.float() - target).abs().pow(self.loss_power).mean(dim=-1)
        per_image = (error * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return per_image.mean()

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """Pixels of every patch, [B, N, patch_size**2 * 3]."""
        raise NotImplementedError

    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict the masked patches of images [B, 3, H, W].

        Returns:
            loss (scalar, float32), prediction [B, N, patch_size**2 * 3], mask (bool [B, N]).
        """
        prediction = self.predict(images, mask)
        return self.loss(images, prediction, mask), prediction, mask


class SimMIM(MaskedImageModel):
    """Mask tokens inside the encoder, one linear layer as head, L1 loss (arXiv 2111.09886).

    Unlike in the original, positions are fixed sines and cosines: a short run need not learn them.
    """

    loss_power = 1

    def __init__(self, *, embed_dim: int = 64, **kwargs: Any) -> None:
        super().__init__(embed_dim=embed_dim, **kwargs)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.head = nn.Linear(embed_dim, self.patch_size**2 * 3)
        self.init_weights()

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """Encode the image with its masked patches replaced by the mask token."""
        x = self.embed(images)
        x = torch.where(mask.unsqueeze(-1), self.mask_token.to(x.dtype), x)
        x = self.encode(x + self.positions)
        return self.head(x[:, 1:])


class MAE(MaskedImageModel):
    """Encoder on visible patches, decoder with mask tokens, MSE loss (arXiv 2111.06377).

    Attributes:
        decoder_blocks: The decoder's blocks; their input is [B, 1 + N, D'], cls first.
    """

    loss_power = 2
    decoder_positions: Tensor

    def __init__(
        self,
        *,
        embed_dim: int = 64,
        decoder_dim: int = 64,
        decoder_depth: int = 2,
        decoder_num_heads: int = 4,
        mlp_ratio: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, mlp_ratio=mlp_ratio, **kwargs)
        self.decoder_embed = nn.Linear(embed_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        positions = sincos_positions(decoder_dim, self.grid)
        self.register_buffer("decoder_positions", positions, persistent=False)
        self.decoder_blocks = make_blocks(decoder_dim, decoder_depth, decoder_num_heads, mlp_ratio)
        self.decoder_norm = nn.LayerNorm(decoder_dim)
        self.head = nn.Linear(decoder_dim, self.patch_size**2 * 3)
        self.init_weights()

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """Encode the visible patches, fill in mask tokens, decode; every image must mask as many
        patches as the first."""
        visible_first = mask.int().argsort(dim=1, stable=True)
        num_visible = self.num_patches - int(mask[0].sum())
        keep = visible_first[:, :num_visible, None]

        x = self.embed(images) + self.positions
        x = self.encode(x.gather(1, keep.expand(-1, -1, x.shape[-1])))

        x = self.decoder_embed(x)
        cls, visible = x[:, :1], x[:, 1:]
        masked = self.mask_token.to(x.dtype).expand(len(x), self.num_patches - num_visible, -1)
        x = torch.cat([visible, masked], dim=1)
        image_order = visible_first.argsort(dim=1).unsqueeze(-1)
        x = x.gather(1, image_order.expand(-1, -1, x.shape[-1])) + self.decoder_positions
        x = torch.cat([cls, x], dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        return self.head(self.decoder_norm(x)[:, 1:])
