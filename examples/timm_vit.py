"""Masked Token Optimization on a timm ViT, trained as in SimMIM: five lines, marked MTO.

A tiny model with random weights on random images, so that it runs anywhere in seconds. SimMIM has
its mask tokens in the encoder, so that is what is traced; one cls token leads its tokens.
"""

import timm
import torch
from torch import Tensor, nn

from mto_core import MaskedTokenOptimization, MTOConfig, TokenTrace


class MaskedModel(nn.Module):
    """A ViT whose masked patches are replaced by a learned token, and a head that paints them."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit
        self.patch = vit.patch_embed.patch_size[0]
        self.mask_token = nn.Parameter(torch.randn(vit.embed_dim) * 0.02)
        self.head = nn.Linear(vit.embed_dim, 3 * self.patch**2)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Mean absolute error of the pixels of masked patches; mask is bool [B, N]."""
        x = self.vit.patch_embed(images)
        x = torch.where(mask[:, :, None], self.mask_token.to(x.dtype), x)
        x = self.vit.norm(self.vit.blocks(self.vit._pos_embed(x)))
        painted = self.head(x[:, self.vit.num_prefix_tokens :])
        patches = nn.functional.unfold(images, self.patch, stride=self.patch).mT
        return (painted - patches).abs().mean(-1)[mask].mean()


def main(steps: int = 10) -> list[dict]:
    """Trains for some steps and returns the scalars of each for a logger."""
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2
    )
    model = MaskedModel(vit)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images = torch.randn(8, 3, 32, 32)

    trace = TokenTrace(vit.blocks, num_prefix_tokens=vit.num_prefix_tokens)  # MTO
    mto = MaskedTokenOptimization(MTOConfig.preset("simmim", warmup_steps=5))  # MTO

    log = []
    for step in range(steps):
        mask = torch.rand(8, 16).argsort(1) < 10  # ten of sixteen patches
        with trace:  # MTO
            reconstruction = model(images, mask)
        terms = mto(trace.tokens_by_depth, mask, step=step)  # MTO
        loss = reconstruction + terms.total  # MTO

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log.append({"loss": reconstruction.item()} | terms.scalars())
    return log


if __name__ == "__main__":
    for step, entry in enumerate(main()):
        print(f"step {step}", *(f"{name} {value:.3g}" for name, value in entry.items()), sep="  ")
