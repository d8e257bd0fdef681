"""Templates of recipe.toml: words with names in braces."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from string import Formatter
from typing import Any

from pydantic import AfterValidator


def check(template: str, known: Collection[str]) -> str:
    """Return a template whose names are all known.

    Raises:
        ValueError: Another name, or braces that do not close.
    """
    if unknown := {name for _, name, _, _ in Formatter().parse(template) if name} - set(known):
        names = ", ".join(f"{{{name}}}" for name in sorted(unknown))
        raise ValueError(f"unknown {names} in {template!r}; known: {', '.join(sorted(known))}")
    return template


def of(*known: str) -> AfterValidator:
    """Annotate a field: a template of these names."""
    return AfterValidator(lambda template: check(template, known))


def some(values: Any) -> Any:
    """Refuse an empty collection; pydantic's `min_length` hides an error inside of it."""
    if not values:
        raise ValueError("must hold at least one")
    return values


def fill(template: str, values: Mapping[str, object]) -> list[str]:
    """Split a template into words, then put the values in: a value with a space is one word."""
    return [word.format(**values) for word in template.split()]
