"""The glue that a patch inserts into a recipe: flags, attach, add, log.

    from mto_tools import recipe as mto

    mto.add_arguments(parser, preset="mae")                    # where the recipe makes its parser
    mto.attach(model, model.decoder_blocks, num_prefix_tokens=1, output_dir=args.output_dir)
    loss = mto.add(loss, mask, step=step)                      # where its own loss is made
    record.update(mto.log())                                   # where it logs

Without `--mto` every call is the identity: nothing is hooked, computed, written or drawn from a
random number generator. The flags are kept here and not in the recipe's namespace, because three of
the four recipes store that namespace in every checkpoint. Processes that parse no command line
inherit them; see `mto_tools.recipe.settings`.

One process trains one model, so the attached state is the module's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mto_tools import ds
from mto_tools.recipe.run import Run
from mto_tools.recipe.settings import add_arguments, add_node, defaults, resolve_settings, wish

__all__ = ["add", "add_arguments", "add_node", "attach", "defaults", "log"]

_run: Run | None = None


def attach(
    model: nn.Module,
    *blocks: Iterable[nn.Module],
    num_prefix_tokens: int = 0,
    output_dir: str | Path | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Watch the blocks that hold mask tokens. Call it before DDP, DeepSpeed or `torch.compile`.

    Args:
        model: The module whose forward pass makes the loss; its call arms the trace, in training
            mode and with gradients enabled only.
        *blocks: The transformer blocks in order. Several lists (BootMAE's two decoders) are
            averaged.
        num_prefix_tokens: Class tokens in front of the patch tokens.
        output_dir: Where rank 0 writes `mto.jsonl` and the affinity maps; `None` writes nothing.
        preset: This recipe's preset, where only now it is known which it is.
        settings: Options from elsewhere than the command line, by field name of `Settings`
            (any case), as a yacs node gives them.

    Raises:
        ValueError: A setting is unknown or out of its range.
        RefusedError: Options were given without the switch.
    """
    global _run
    asked = resolve_settings(preset, settings)
    if _run is not None:
        _run.close()
    _run = Run(model, blocks, num_prefix_tokens, output_dir, asked) if asked.on else None
    wish.met()


def add(
    loss: Tensor,
    mask: Tensor,
    *,
    step: int | None = None,
    micro_batches: int | None = None,
    batches_per_epoch: int | None = None,
) -> Tensor:
    """Return `loss` plus the weighted MTO terms; `loss` itself when MTO is off or only observes.

    Args:
        loss: The recipe's own loss L_ss, [] or [1] with history, not yet divided by
            `micro_batches`.
        mask: `[B, N]` or `[B, h, w]`, bool or numbers, 1 = masked, in image order.
        step: Optimizer step, counted from 1 and equal for all micro batches of a step. `None`
            counts calls, which forgets the past on resume: pass it where there is a warm-up.
            Micro batches left over at the end of an epoch may have the next step's number: of more
            than `micro_batches` with one number, the last count.
        micro_batches: Micro batches per optimizer step; `None` for a recipe that knows none, so
            that there is one, or as many as DeepSpeed's configuration brings.
        batches_per_epoch: Micro batches in the loader. Pass it where `step` is counted by epochs: a
            run resumed with another batch then goes on counting where its checkpoint stands.

    Raises:
        ValueError: `loss` is no single number.
        RefusedError: A step takes more micro batches than an epoch has.
    """
    if _run is None:
        return loss
    micro = ds.accumulation() if micro_batches is None else micro_batches
    return _run.add(loss, mask, step, micro, batches_per_epoch)


def log(*, new: bool = False) -> dict[str, float]:
    """The newest L_ss, terms and H by depth, under `mto_*` names; empty when MTO is off.

    A value that this step did not measure is that of the last logged step; with `new` it is left
    out, for writers that are dear to call.
    """
    return {} if _run is None else _run.log(new)
