"""Starts an upstream's own scripts: as they are, or on a CPU, on a few real images."""
