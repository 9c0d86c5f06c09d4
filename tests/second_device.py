"""A second device on any machine: tensors that live beside the CPU's, and are refused where a GPU's would be.

A machine without a GPU does not notice a tensor that was left on the CPU. Here it does. A tensor ``.to(DEVICE)`` is a
:class:`Far`: it computes on the CPU, real values at full precision, but only with others of its kind. PyTorch has to
take the device's name for one that it knows, without a compiled backend: "meta".

    with second_device():
        network.to(DEVICE)(image.to(DEVICE))

Emulated are the rules of devices and nothing else: no speed, no asynchrony, no ``torch.cuda``, no autocast.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from istn_monai import kinds

DEVICE = "meta"
#: what takes a tensor from one device to another
CROSSING = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
#: where an index on the CPU is allowed for a GPU's tensor
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)


class Far(Tensor):
    """A tensor on the second device; ``near`` holds its values."""

    __slots__ = ("near",)  # MetaTensor exchanges the dictionary of attributes

    @staticmethod
    def __new__(cls, near: Tensor, *_: Any, **__: Any) -> Far:
        layout = {"strides": near.stride(), "storage_offset": near.storage_offset(), "dtype": near.dtype}
        far = Tensor._make_wrapper_subclass(cls, near.shape, device=DEVICE, **layout)
        far.near = near
        return far

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.near!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.near.__reduce_ex__(protocol)  # torch.save; torch.load says again where to

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})  # PyTorch would turn it off

    @classmethod
    def __torch_dispatch__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class FarMetaTensor(MetaTensor, Far):
    """A MetaTensor on the second device."""

    __new__ = Far.__new__


def converted(result: Any, cls: type, convert: Callable[[Any, type], Any]) -> Any:
    """A result of a function of tensor subclasses as one, as ``torch._tensor._convert`` does it on the CPU."""
    if not issubclass(cls, Far) and not any(isinstance(leaf, Far) for leaf in tree_leaves(result)):
        return convert(result, cls)
    return tree_map_only(Tensor, as_meta, result) if issubclass(cls, MetaTensor) else result


def as_meta(tensor: Tensor) -> MetaTensor:
    if isinstance(tensor, MetaTensor):
        return tensor
    return FarMetaTensor(tensor.near) if isinstance(tensor, Far) else tensor.as_subclass(MetaTensor)


def is_far(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE


def check_devices(func: Callable[..., Any], tensors: list[Tensor]) -> None:
    """As a GPU does it: only numbers (0-D), crossings and indices may come from the CPU."""
    if any(is_far(tensor.device) and not isinstance(tensor, Far) for tensor in tensors):
        raise AssertionError(f"{func} got a tensor that was made past the emulation of a device; teach it that way")
    near = [tensor for tensor in tensors if not isinstance(tensor, Far) and tensor.ndim > 0]
    if func in INDEXING and isinstance(tensors[0], Far):
        near = [tensor for tensor in near if tensor.is_floating_point()]
    if near and func not in CROSSING and any(isinstance(tensor, Far) for tensor in tensors):
        raise RuntimeError(f"{func}: tensors on two devices; on the CPU: {[tuple(t.shape) for t in near]}")


def compute(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation, where its arguments or ``device`` say; in-place ones give back their own argument."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    check_devices(func, tensors)
    if func is torch.ops.aten.copy_.default:
        far = isinstance(args[0], Far)
    elif kwargs.get("device") is not None:
        far = is_far(kwargs["device"])
        kwargs = {**kwargs, "device": "cpu"}
    else:
        far = any(isinstance(tensor, Far) for tensor in tensors)
    near_args, near_kwargs = tree_map_only(Far, lambda tensor: tensor.near, (args, kwargs))
    result = func(*near_args, **near_kwargs)
    if not far:
        return result
    own = {id(tensor.near): tensor for tensor in tensors if isinstance(tensor, Far)}
    return tree_map_only(Tensor, lambda tensor: own[id(tensor)] if id(tensor) in own else Far(tensor), result)


class Operations(TorchDispatchMode):
    """Operations of CPU tensors too: some make a tensor on the second device."""

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Functions(TorchFunctionMode):
    """What PyTorch does before its operations, where no mode for operations sees it."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and is_far(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if args and isinstance(args[0], Far):
            if func is Tensor.new_tensor:
                return args[0].near.new_tensor(*args[1:], **kwargs).to(DEVICE)
            if func is Tensor.tolist:
                return args[0].near.tolist()
            if func is Tensor.__getitem__:
                return func(args[0], with_tensors(args[1]))
        return func(*args, **kwargs)


def with_tensors(index: Any) -> Any:
    """An index with tensors in place of its lists, which PyTorch would make on the device itself."""
    if isinstance(index, tuple):
        return tuple(map(with_tensors, index))
    return torch.tensor(index) if isinstance(index, list) else index


@contextlib.contextmanager
def second_device() -> Iterator[None]:
    """Within it, :data:`DEVICE` is a device to compute on."""
    load, autocast, meta_tensor = torch.load, torch.autocast.__init__, MetaTensor.__new__

    def meta_tensor_far(cls: type[MetaTensor], x: Any, *args: Any, **kwargs: Any) -> MetaTensor:
        return as_meta(x) if isinstance(x, Far) else meta_tensor(cls, x, *args, **kwargs)

    def load_far(*args: Any, map_location: Any = None, **kwargs: Any) -> Any:
        content = load(*args, map_location="cpu", **kwargs)
        moved = tree_map_only(Tensor, lambda tensor: tensor.to(map_location or "cpu"), content)
        if hasattr(content, "__dict__"):
            vars(moved).update(vars(content))  # a state dictionary's ``_metadata``
        return moved

    def autocast_far(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
        autocast(self, "cpu" if device_type == DEVICE else device_type, *args, **kwargs)

    with (
        mock.patch.object(torch._tensor, "_convert", functools.partial(converted, convert=torch._tensor._convert)),
        mock.patch.object(MetaTensor, "__new__", meta_tensor_far),
        mock.patch.object(torch, "load", load_far),
        mock.patch.object(kinds, "DEVICE", re.compile(f"{kinds.DEVICE.pattern}|{DEVICE}")),
        mock.patch.object(torch.autocast, "__init__", autocast_far),
        Functions(),
        Operations(),
    ):
        yield
