"""Kernels counted as they are called: floating-point operations and bytes of memory traffic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
FORMULAS = {  # a CPU's fused attention does the products of a GPU's
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        aten._scaled_dot_product_flash_attention
    ],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}
HALVES = (torch.float16, torch.bfloat16)
# A gather reads as much as it writes, a scatter touches as much of its target as it is given.
GATHERS = ("aten::index_select", "aten::gather", "aten::index", "aten::embedding")
SCATTERS = ("aten::index_add_", "aten::scatter_add_", "aten::index_put_", "aten::_index_put_impl_")
FILLS = ("aten::zeros", "aten::zero_", "aten::fill_", "aten::full", "aten::ones", "aten::arange")


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second; `flop` is by kind: "16 bit", "tf32" or "float32"."""

    name: str
    flop: dict[str, float]
    bandwidth: float  # bytes


@dataclass(frozen=True)
class Kernel:
    """One call: a name, its multiplications and additions, and the bytes that it moves."""

    name: str
    kind: str
    flop: float
    bytes: float


@dataclass
class Count:
    """All kernels of a piece of a step."""

    kernels: list[Kernel] = field(default_factory=list)

    def flop(self, kind: str) -> float:
        """Operations of one kind."""
        return sum(kernel.flop for kernel in self.kernels if kernel.kind == kind)

    def bytes(self) -> float:
        """Traffic of all kernels."""
        return sum(kernel.bytes for kernel in self.kernels)

    def seconds(self, rates: Rates) -> float:
        """The roofline: each kernel takes its arithmetic or its traffic, what is longer."""
        return sum(
            max(k.flop / rates.flop[k.kind] if k.flop else 0.0, k.bytes / rates.bandwidth)
            for k in self.kernels
        )


class Counting(TorchDispatchMode):
    """Counts each kernel between here and the end of the `with`, that of a backward included.

    Products are those that `torch.utils.flop_counter` knows. Traffic is inputs and outputs, each
    read or written once; views are free. Kernels are taken to be unfused, as in eager mode. The
    body of a custom operator is counted, and not the operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs `func`, and takes it down."""
        kwargs = kwargs or {}
        name = func.name().split(".")[0]
        if name in OPDEFS:
            body: Callable[..., Any] = OPDEFS[name]._init_fn
            with self:
                return body(*args, **kwargs)
        formula = FORMULAS.get(func.overloadpacket)
        if not formula and not name.startswith("prim"):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        moved = _moved(func, name, _tensors((args, kwargs)), _tensors(out))
        flop = formula(*args, **kwargs, out_val=out) if formula else 0
        if moved or flop:
            self.count.kernels.append(Kernel(name, _kind(name, _tensors(args)), flop, moved))
        return out


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _moved(func: Any, name: str, given: list[Tensor], made: list[Tensor]) -> float:
    """Bytes that a call reads and writes."""
    written = sum(map(_size, made))
    if "empty" in name or name.startswith("prim"):
        return 0
    if name in FILLS or name.startswith("aten::new_"):
        return written
    if name in GATHERS:
        return 2 * written + sum(_size(t) for t in given[1:])
    if name in SCATTERS:
        index, source = sorted(given[1:], key=lambda t: t.is_floating_point())[-2:]
        return 3 * _size(source) + _size(index)
    storages = {t.untyped_storage()._cdata for t in given}
    if not func._schema.is_mutable and all(t.untyped_storage()._cdata in storages for t in made):
        return 0  # a view
    if func._schema.is_mutable and not made:  # foreach and fused: which are written is in the name
        written = sum(map(_size, given))
    if name == "aten::copy_":
        given = given[1:]
    return sum(map(_size, given)) + written


def _size(tensor: Tensor) -> int:
    """Bytes of the distinct elements: an expanded tensor is read from a cache."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * prod(n for n, stride in pairs if stride or n == 0)


def _kind(name: str, tensors: list[Tensor]) -> str:
    dtypes = [t.dtype for t in tensors if t.is_floating_point()]
    if dtypes and dtypes[0] in HALVES:
        return "16 bit"
    return "tf32" if _tf32("convolution" in name) else "float32"


def _tf32(convolution: bool) -> bool:
    """Whether float32 products may run as TensorFloat-32 now."""
    place: Any = torch.backends.cudnn if convolution else torch.backends.cuda.matmul
    place = getattr(place, "conv", place)
    if hasattr(place, "fp32_precision"):
        return bool(place.fp32_precision == "tf32")
    return bool(place.allow_tf32)
