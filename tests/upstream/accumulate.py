"""Plain accumulation under DDP, for a recipe that has none: `worker --before` runs this file.

The reference for what `mto_tools.ds` brings to ConMIM: the same inserted lines, with nothing of
DeepSpeed behind them.
"""

from mto_tools import ds

MICRO = 2
_done = [0]


def _accumulate(loss):
    _done[0] += 1
    if _done[0] == MICRO:
        return False
    (loss / MICRO).backward()
    return True


class _Scaler:
    def __init__(self, scaler, clear):
        self.scaler, self.clear = scaler, clear

    def __call__(self, loss, *args, **more):
        norm = self.scaler(loss / MICRO, *args, **more)
        self.clear()
        _done[0] = 0
        return norm

    def __getattr__(self, name):
        return getattr(self.scaler, name)


def _start(model, optimizer, scaler, **_):
    clear = optimizer.zero_grad
    optimizer.zero_grad = lambda *_, **__: None
    return model, optimizer, _Scaler(scaler, clear)


ds.accumulation, ds.accumulate, ds.start = lambda: MICRO, _accumulate, _start
