"""What the user asks of MTO: the flags of a recipe, or a node of its yacs configuration."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from mto_core import MTOConfig
from mto_tools.flags import add_kept


@dataclass(frozen=True)
class Settings:
    """What the user asked for on the command line; `None` means the preset's own value."""

    on: bool = False
    recipe: str = "observe"
    preset: str | None = None
    sparsity: float | None = None
    singularity: float | None = None
    ranking: float | None = None
    scale: str | None = None
    reduction: str | None = None
    direction: str | None = None
    warmup_steps: int | None = None
    balance: float | None = None
    log_every: int = 10
    grad_every: int = 0
    affinity_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("log_every", 1), ("grad_every", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"MTO setting {name} must be at least {least}, got {value}")

    def config(self) -> MTOConfig:
        """The preset with the user's own values laid over it."""
        own = {f.name for f in fields(MTOConfig)} & {f.name for f in fields(self)}
        values = {name: getattr(self, name) for name in sorted(own)}
        return replace(
            MTOConfig.preset(self.preset or self.recipe),
            **{k: v for k, v in values.items() if v is not None},
        )


_settings = Settings()


def add_arguments(parser: argparse.ArgumentParser, preset: str = "observe") -> None:
    """Add `--mto` and its options to a recipe's parser; `preset` is this recipe's own.

    The values never reach the namespace that `parse_args` returns.
    """
    _replace(Settings(recipe=preset))
    group = parser.add_argument_group("masked token optimization")

    def option(flag: str, kind: Any, text: str, **more: Any) -> None:
        name = flag.removeprefix("--mto_")

        def keep(value: Any) -> None:
            try:
                _set(**{name: value})
            except ValueError as error:
                parser.error(str(error))

        add_kept(group, flag, keep, type=kind, help=text, **more)

    text = "add the MTO losses to the recipe's own"
    add_kept(group, "--mto", lambda _: _set(on=True), nargs=0, help=text)
    option("--mto_preset", str, "weights by recipe name (default: this recipe's)", metavar="NAME")
    option("--mto_sparsity", float, "weight of the sparsity loss (eq. 3)", metavar="W")
    option("--mto_singularity", float, "weight of the singularity loss (eq. 6)", metavar="W")
    option("--mto_ranking", float, "weight of the ranking loss (eq. 7)", metavar="W")
    option("--mto_scale", str, "raw | sqrt_dim | layernorm", metavar="S")
    option("--mto_reduction", str, "mean | sum over visible rows in eq. 3", metavar="R")
    option("--mto_direction", str, "decreasing | as_printed in eq. 7", metavar="D")
    option("--mto_warmup_steps", int, "raise the weights linearly over N steps", metavar="N")
    option("--mto_balance", float, "hold each term's gradient at R times the loss's", metavar="R")
    option("--mto_log_every", int, "a line in mto.jsonl every N steps (default: 10)", metavar="N")
    option("--mto_grad_every", int, "measure gradient ratios every N steps (dear)", metavar="N")
    option("--mto_affinity_steps", _steps, "save affinity maps at steps A,B,…", metavar="A,B")


def defaults(preset: str = "observe") -> dict[str, Any]:
    """Every setting by its upper-case name, for a recipe whose options are yacs nodes.

    `attach(settings=...)` takes such a node back, with the user's values in it.
    """
    return {f.name.upper(): getattr(Settings(recipe=preset), f.name) for f in fields(Settings)}


def settle(preset: str | None, node: Mapping[str, Any] | None) -> Settings:
    """The settings that count: those of a yacs node, if given, and for this recipe's preset.

    Raises:
        ValueError: The node holds something unknown, or a number out of range.
    """
    if node is not None:
        known = [f.name for f in fields(Settings)]
        given = {str(key).lower(): value for key, value in node.items()}
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"unknown MTO setting {unknown[0]!r}; known: {', '.join(known)}")
        _replace(Settings(**given))
    if preset is not None:
        _set(recipe=preset)
    return _settings


def _set(**values: Any) -> None:
    _replace(replace(_settings, **values))


def _replace(settings: Settings) -> None:
    global _settings
    _settings = settings


def _steps(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)
