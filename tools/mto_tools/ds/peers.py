"""What a rank says when another one is gone."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import torch.distributed as dist

LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")
SECONDS = 3.0  # torchrun looks ten times a second, and orders failures by whole seconds


def give_way() -> None:
    """Let the rank that failed be the one that the launcher reports.

    Its peers fail a moment later, in the middle of a collective, and by their exit code nobody can
    tell them from the cause. So they say what happened and wait to be ended with the others.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before(kind, error, trace)
        if isinstance(error, RuntimeError) and any(words in str(error) for words in LOST):
            print(
                f"rank {dist.get_rank()}: another process is gone. The launcher names it below, "
                "with its exit code (-9: killed, often for want of memory). Start the same command "
                "again to go on from the last checkpoint.",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(SECONDS)

    sys.excepthook = hook
