"""The studies that have a name: compare, ablation (Table 3), paper (Figure 4 and Table 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from typing import Any, get_args

from mto_tools.errors import MtoError
from mto_tools.study.schedule import counts_epochs
from mto_tools.study.spec import Arm, FineTuning, Study, Value
from mto_tools.upstreams.recipe import Recipe

BASELINE: dict[str, Value] = {"preset": "observe"}  # measures the same things, and adds nothing
PAPER = "paper"  # preset of the studies that the paper made
MEASURES = ("log_every", "grad_every", "affinity_steps")  # options of MTO that only measure
POINTS = (100, 200, 300, 400, 800)  # epochs of Figure 4 and Table 2, of 800
FEW_EPOCHS = 100  # of a trial: it saves at its points only


@dataclass(frozen=True)
class Asked:
    """Options of the command line; None leaves the choice to the recipe."""

    style: str | None = None
    preset: str | None = None
    model: str | None = None
    seeds: int = 1
    steps: int | None = None
    epochs: int | None = None
    batch: int | None = None
    images_per_gpu: int | None = None
    nproc: int = 1
    data: str = ""
    extra: Sequence[str] = ()  # after `--`
    finetune: FineTuning = field(default_factory=FineTuning)


def compare(name: str, recipe: Recipe, asked: Asked) -> Study:
    """Two arms: MTO that only observes, and MTO.

    Raises:
        MtoError: An option that cannot be run.
    """
    shared, mto = split_options(asked.extra, recipe.options.form)
    preset = _preset(name, recipe, asked)
    arms = {"baseline": Arm(mto=BASELINE), "mto": Arm(mto={"preset": preset}, arguments=(*mto,))}
    return _study(name, asked, arms, shared)


def ablation(name: str, recipe: Recipe, asked: Asked) -> Study:
    """Eight arms: all combinations of the three terms, with the weights of preset `paper`.

    Raises:
        MtoError: An option that cannot be run, or the preset has no weight for a term.
    """
    from mto_core.checks import TERMS
    from mto_core.config import PRESETS  # imports torch

    shared, mto = split_options(asked.extra, recipe.options.form)
    prefix = _prefix(recipe.options.form)
    for word in mto:
        term = word.partition("=")[0].removeprefix(prefix).lower()
        if word.startswith(prefix) and any(
            own.startswith(term) for own in (*TERMS, "balance", "calibrate")
        ):
            raise MtoError(
                f"{word} decides the weights, which an ablation switches on and off",
                hint=f"mto study ablation {name} --preset PRESET",
            )
    preset: Any = _preset(name, recipe, replace(asked, preset=asked.preset or PAPER))
    if missing := [term for term in TERMS if not PRESETS[preset].get(term)]:
        raise MtoError(
            f"preset {preset!r} has no weight for {', '.join(missing)}, so there is nothing to "
            "switch off",
            hint=f"mto study ablation {name} --preset {PAPER}",
        )
    arms = {"baseline": Arm(mto=BASELINE)}
    on = sorted((c for c in product((True, False), repeat=len(TERMS)) if any(c)), key=sum)
    for chosen in on:
        names = [term for term, is_on in zip(TERMS, chosen, strict=True) if is_on]
        off = dict.fromkeys((term for term in TERMS if term not in names), 0)
        arms["+".join(names)] = Arm(mto={"preset": preset, **off}, arguments=(*mto,))
    return _study(name, asked, arms, shared)


def paper(name: str, recipe: Recipe, asked: Asked) -> Study:
    """Two arms at full size, preset `paper`, fine-tuned from five checkpoints on the way.

    A recipe that counts steps runs its own schedule, with the points at the same shares of it.

    Raises:
        MtoError, MissingError: As `compare`, or the recipe has no full size.
    """
    study = compare(name, recipe, replace(asked, preset=asked.preset or PAPER))
    more: dict[str, Any] = {"finetune": asked.finetune}
    if counts_epochs(recipe):
        schedule = recipe.plan and recipe.plan.schedule(asked.model, None)
        length = asked.epochs or (schedule.epochs if schedule else 0) or POINTS[-1]
        more |= {"size": "full", "epochs": length, "steps": None}
        more["save"] = 20 if length > FEW_EPOCHS else None
    else:
        length = asked.steps or (recipe.compare.steps if recipe.compare else 0) or POINTS[-1]
    share = min(1.0, length / POINTS[-1])  # a longer run has the paper's own points
    more["finetune_at"] = tuple(sorted({max(1, round(point * share)) for point in POINTS}))
    return study.model_copy(update=more)


BUILT_IN = {"compare": compare, "ablation": ablation, "paper": paper}


def split_options(extra: Sequence[str], form: str) -> tuple[list[str], list[str]]:
    """Arguments after `--`: of all arms, and of those with MTO alone.

    Options of MTO (`--mto_NAME VALUE`, `--mto_NAME=VALUE`, `MTO.NAME VALUE`) belong to MTO, but for
    those that only measure, which all arms need alike.

    Raises:
        MtoError: An option that the study itself gives to the arms.
    """
    prefix = _prefix(form)
    shared: list[str] = []
    mto: list[str] = []
    rest = iter(extra)
    for word in rest:
        option, equals, _ = word.partition("=")
        if not option.startswith(prefix):
            shared.append(word)
            continue
        name = option.removeprefix(prefix).lower()  # argparse takes the beginning of a name, too
        if any(own.startswith(name) for own in ("on", "preset")):
            raise MtoError(
                f"{option} is set by the study, in each arm as it needs",
                hint="--preset PRESET, or weights after --",
            )
        arms = shared if any(measure.startswith(name) for measure in MEASURES) else mto
        arms += [word] if equals else [word, *islice(rest, 1)]
    return shared, mto


def _prefix(form: str) -> str:
    return "MTO." if form == "nodes" else "--mto_"


def _preset(name: str, recipe: Recipe, asked: Asked) -> str:
    from mto_core.config import Preset  # imports torch

    own = recipe.styles[recipe.style(asked.style, name)].preset
    if asked.preset not in (None, *get_args(Preset)):
        raise MtoError(
            f"there is no MTO preset {asked.preset!r}; known: {', '.join(get_args(Preset))}",
            hint=f"--preset {own}",
        )
    return asked.preset or own


def _study(name: str, asked: Asked, arms: dict[str, Arm], shared: list[str]) -> Study:
    return Study(
        upstream=name,
        style=asked.style or "",
        model=asked.model or "",
        arms=arms,
        seeds=tuple(range(asked.seeds)),
        steps=asked.steps,
        epochs=asked.epochs,
        batch=asked.batch,
        images_per_gpu=asked.images_per_gpu,
        nproc=asked.nproc,
        data=asked.data,
        arguments=tuple(shared),
        finetune=asked.finetune,
    )
