"""Frozen features of a pre-trained encoder: k-NN and linear probes, for every recipe alike."""
