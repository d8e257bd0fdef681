"""How a recipe fits on given GPUs: micro batch, accumulation, ZeRO stage and memory."""
