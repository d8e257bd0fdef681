"""Masked Token Optimization losses for masked image modeling."""
