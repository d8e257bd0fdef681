"""Settings of MTO: flags of a recipe, a node of its yacs configuration, or a parent's export.

The process that parses a command line exports the settings as `MTO_SETTINGS`, in JSON. Processes
that parse none inherit them: submitit's jobs, spawned workers, a notebook that calls `main(args)`.
A process that parses its own command line decides for itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

from mto_core import MTOConfig
from mto_core.checks import TERMS
from mto_tools.errors import RefusedError
from mto_tools.flags import PrivateOptions, Wish

VARIABLE = "MTO_SETTINGS"


def _option(text: str, metavar: str, kind: Any = float, default: Any = None) -> Any:
    """A setting that is also an option, `--mto_NAME`."""
    return field(default=default, metadata={"help": text, "metavar": metavar, "type": kind})


def _steps(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


@dataclass(frozen=True)
class Settings:
    """The user's settings; `None` means the preset's own value."""

    on: bool = False
    recipe: str = "observe"
    preset: str | None = _option(
        "mae | bootmae | simmim | conmim (beyond the paper: what helped in small experiments) | "
        "paper (its terms in its places, calibrated weights) | literal (weights 1) | observe "
        "(weights 0, measured where this recipe's preset acts); default: this recipe's",
        *("NAME", str),
    )
    sparsity: float | None = _option("weight of the sparsity loss (eq. 3)", "W")
    singularity: float | None = _option("weight of the singularity loss (eq. 6)", "W")
    ranking: float | None = _option("weight of the ranking loss (eq. 7)", "W")
    sparsity_depth: int | None = _option(
        "where eq. 3 acts: 0 the first block's input (the paper), -1 the last block's output",
        *("N", int),
    )
    scale: str | None = _option("logits: raw (the paper) | sqrt_dim | layernorm", "S", str)
    sparsity_scale: str | None = _option("logits of eq. 3 alone", "S", str)
    singularity_scale: str | None = _option("logits of eq. 6 alone", "S", str)
    ranking_scale: str | None = _option("logits of eq. 7 alone", "S", str)
    reduction: str | None = _option("mean | sum over visible rows in eq. 3", "R", str)
    direction: str | None = _option("decreasing | as_printed in eq. 7", "D", str)
    warmup_steps: int | None = _option("raise the weights linearly over N steps", "N", int)
    off_after: int | None = _option("the last step with weights; then they are 0", "N", int)
    balance: float | None = _option("hold each term's gradient at R times the loss's", "R")
    calibrate: float | None = _option(
        "set each weight once, from the first steps, so that its gradient is R times the loss's; "
        "0: fixed weights",
        "R",
    )
    log_every: int = _option("a line in mto.jsonl every N steps (default: 10)", "N", int, 10)
    grad_every: int = _option("measure gradient ratios every N steps (dear)", "N", int, 0)
    affinity_steps: tuple[int, ...] | None = _option(
        "save affinity maps at steps A,B,…", "A,B", _steps
    )

    def __post_init__(self) -> None:
        for name, least in (("log_every", 1), ("grad_every", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"MTO setting {name} must be at least {least}, got {value}")
        steps = self.affinity_steps  # a yacs node or JSON gives a number or a list
        if steps is not None:
            steps = (steps,) if isinstance(steps, int) else tuple(steps)
            object.__setattr__(self, "affinity_steps", steps)

    def config(self) -> MTOConfig:
        """The preset with the user's own values laid over it.

        Raises:
            ValueError: No such preset, or a value out of its range.
        """
        known = {f.name for f in fields(MTOConfig)}
        own = {k: v for k, v in asdict(self).items() if k in known and v is not None}
        preset: Any = self.preset or self.recipe
        if preset == "observe":  # where the recipe's preset acts, so that both can be compared
            preset = self.recipe
            own = {**dict.fromkeys(TERMS, 0.0), "calibrate": None, **own}
        return MTOConfig.preset(preset, **own)

    @property
    def given(self) -> list[str]:
        """Names of the settings that the user has changed."""
        plain = Settings(recipe=self.recipe)
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(plain, f.name)]

    def check(self) -> None:
        """Refuse settings that would have no effect, or have no meaning.

        Raises:
            RefusedError: Options without the switch.
            ValueError: As `config` says.
        """
        if self.given and not self.on:
            flags = ", ".join(f"--mto_{name}" for name in self.given)
            raise RefusedError(
                f"{flags} given without --mto (MTO.ON True in a yacs configuration): the run would "
                "be the plain recipe",
                hint="add the switch, or leave the options out",
            )
        self.config()


_settings: Settings | None = None
wish = Wish(VARIABLE, "mto.attach", "mto")


def add_arguments(parser: argparse.ArgumentParser, preset: str = "observe") -> None:
    """Add `--mto` and its options to a recipe's parser; `preset` is this recipe's own.

    The values never reach the namespace that `parse_args` returns.
    """
    options = PrivateOptions(
        parser.add_argument_group("masked token optimization"),
        begin=lambda: _ask(Settings(recipe=preset)),
        check=lambda: _asked().check(),
    )

    def keep(name: str, value: Any) -> None:
        _ask(replace(_asked(), **{name: value}))

    text = "add the MTO losses to the recipe's own"
    options.add("--mto", lambda _: keep("on", True), nargs=0, help=text)
    for setting in fields(Settings):
        if setting.metadata:
            options.add(f"--mto_{setting.name}", partial(keep, setting.name), **setting.metadata)


def defaults(preset: str = "observe") -> dict[str, Any]:
    """Every setting by its upper-case name, for a recipe whose options are yacs nodes.

    `attach(settings=...)` takes such a node back, with the user's values in it.
    """
    return {name.upper(): value for name, value in asdict(Settings(recipe=preset)).items()}


def add_node(config: Any, preset: str) -> None:
    """Add the node `MTO` of `defaults(preset)` to a yacs configuration.

    YAML 1.1 reads the key of `MTO: {ON: True}` as a boolean, so the configuration's class learns to
    read that key as "ON".
    """
    _ask(Settings(recipe=preset))
    kind = type(config)
    config.MTO = kind(defaults(preset))
    original = kind.load_cfg

    def load_cfg(_: type, source: Any) -> Any:
        node = original(source)
        options = node.get("MTO")
        if isinstance(options, dict) and True in options:
            options["ON"] = options.pop(True)
        return node

    kind.load_cfg = classmethod(load_cfg)


def resolve_settings(preset: str | None, node: Mapping[str, Any] | None) -> Settings:
    """The settings in effect: of a yacs node, else of this process, else of its parent.

    Args:
        preset: This recipe's preset, where it is known only now.
        node: Settings by field name, in any case.

    Raises:
        ValueError: The node holds something unknown, or a number out of range.
        RefusedError: Options were given without the switch.
    """
    settings = _asked()
    if node is not None:
        known = [f.name for f in fields(Settings)]
        given = {str(key).lower(): value for key, value in node.items()}
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"unknown MTO setting {unknown[0]!r}; known: {', '.join(known)}")
        settings = Settings(**given)
    if preset is not None:
        settings = replace(settings, recipe=preset)
    settings.check()
    _ask(settings)
    return settings


def _asked() -> Settings:
    """This process's settings; where it has parsed nothing, those that its parent exported."""
    if _settings is None and wish.text is not None:
        return Settings(**json.loads(wish.text))
    return _settings or Settings()


def _ask(settings: Settings) -> None:
    """Make `settings` those of this process and of its children."""
    global _settings
    _settings = settings
    changed = {name: getattr(settings, name) for name in ("recipe", *settings.given)}
    wish.ask(json.dumps(changed) if settings.given else None)
