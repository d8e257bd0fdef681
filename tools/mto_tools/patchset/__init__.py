"""Patch series over the official recipes: fetch, apply, check, revert; knows git, not torch."""
