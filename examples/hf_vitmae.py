"""Masked Token Optimization on Hugging Face's ViTMAE: five lines, marked MTO.

A tiny model with random weights on random images, so that it runs anywhere in seconds. MAE has its
mask tokens in the decoder, so that is what is traced; one cls token leads its tokens.
"""

import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from mto_core import MaskedTokenOptimization, MTOConfig, TokenTrace


def main(steps: int = 10) -> list[dict]:
    """Trains for some steps and returns the scalars of each for a logger."""
    torch.manual_seed(0)
    config = ViTMAEConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=3,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
    )
    model = ViTMAEForPreTraining(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images = torch.randn(8, 3, 32, 32)

    trace = TokenTrace(model.decoder.decoder_layers, num_prefix_tokens=1)  # MTO
    mto = MaskedTokenOptimization(MTOConfig.preset("mae", warmup_steps=5))  # MTO

    log = []
    for step in range(steps):
        with trace:  # MTO
            outputs = model(images)
        terms = mto(trace.tokens_by_depth, outputs.mask.bool(), step=step)  # MTO
        loss = outputs.loss + terms.total  # MTO

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log.append({"loss": outputs.loss.item()} | terms.scalars())
    return log


if __name__ == "__main__":
    for step, entry in enumerate(main()):
        print(f"step {step}", *(f"{name} {value:.3g}" for name, value in entry.items()), sep="  ")
