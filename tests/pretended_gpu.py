"""GPUs that are not there: tensors on the CPU which say that they are on one, and refuse what tensors there would refuse.

    with pretended(): torch.zeros(3, device="cuda:1") + torch.ones(3)      raises RuntimeError, as on a real GPU

Where a tensor is, is noted on its storage, so that views, parameters and `.data` agree. Each call into torch is looked at from
outside: its tensors must be on one device, and what it gives is there, too. What torch does inside of a call is trusted.
Kernels, precision and memory are those of the CPU; CUDA's autocast is the CPU's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
# Operators that take no number from the CPU beside tensors on a GPU; arithmetic does.
STRICT = frozenset(
    "stack cat concat index_select index_copy index_copy_ index_add index_add_ gather scatter scatter_ linear equal einsum "
    "matmul mm bmm outer".split()
)
FREE = frozenset("__reduce_ex__ __setstate__ _has_compatible_shallow_copy_type _make_subclass set_".split())


def place(tensor: Tensor) -> torch.device:
    """Where a tensor says that it is."""
    if tensor.device.type == "meta":
        return tensor.device
    try:
        found: torch.device = getattr(tensor.untyped_storage(), "_pretended", CPU)
    except (NotImplementedError, RuntimeError, ValueError):  # it has no storage
        return CPU
    return found


def _put(tensor: Tensor, device: torch.device) -> Tensor:
    tensor.untyped_storage()._pretended = device  # type: ignore[attr-defined]
    return tensor


def _tensors(value: Any) -> list[Tensor]:
    """In lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _gpu(device: Any) -> torch.device | None:
    """The device with its number, when it is a GPU."""
    found = None if device is None or isinstance(device, int) else torch.device(device)
    return torch.device("cuda", found.index or 0) if found is not None and found.type == "cuda" else None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class PretendedGPU(TorchFunctionMode):
    """While active, `device="cuda:1"` and `.to("cuda:1")` work, and devices must not be mixed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name, owner = dict(kwargs or {}), getattr(func, "__name__", str(func)), getattr(func, "__self__", None)
        if owner is Tensor.device and name == "__get__":
            return place(args[0])
        if owner is Tensor.is_cuda and name == "__get__":
            return place(args[0]).type == "cuda"
        if name in ("to", "cpu", "cuda", "type_as") and isinstance(args[0], Tensor):
            return self._moved(func, name, *args, **kwargs)
        if name == "copy_":
            return func(*args, **kwargs)
        tensors = [
            *_tensors(args[:1] if name == "__deepcopy__" else args),
            *_tensors(kwargs),
        ]  # beside it stands all that is copied
        on = {device for device in map(place, tensors) if device.type == "cuda"}
        if name in ("numpy", "__array__") and on and not kwargs.get("force"):
            raise TypeError(f"can't convert {on} device type tensor to numpy. Use Tensor.cpu() first.")
        made_on = _gpu(kwargs.get("device"))
        if (made_on or on) and isinstance(kwargs.get("generator"), torch.Generator):
            raise RuntimeError(f"{name}: Expected a 'cuda' device type for generator but found 'cpu'")
        if made_on is not None:
            kwargs["device"] = "cpu"
        elif kwargs.get("device") is not None or not on:
            return func(*args, **kwargs)
        else:
            self._check(name, args, tensors, on)
        out, known = func(*args, **kwargs), {_storage(tensor) for tensor in tensors}
        device = made_on or on.pop()
        for tensor in _tensors(out):
            if tensor.device.type == "cpu" and _storage(tensor) not in known:
                _put(tensor, device)
        return out

    def _check(self, name: str, args: Any, tensors: list[Tensor], on: set[torch.device]) -> None:
        here = [tensor for tensor in tensors if place(tensor).type == "cpu"]
        told = (
            f"{name}: Expected all tensors to be on the same device, but found {[(*t.shape, str(place(t))) for t in tensors]}"
        )
        if len(on) > 1:
            raise RuntimeError(told)
        if not here or name in FREE or name == "__set__":
            return
        if name in ("__getitem__", "__setitem__"):  # places may be on the CPU, what they are places of may not
            by_tensor = bool(_tensors(args[1]))
            others = [args[0], *args[2:]] if by_tensor else args[:1] if name == "__getitem__" else []
            if any(isinstance(t, Tensor) and t.dim() and place(t).type == "cpu" for t in others):
                raise RuntimeError(told)
            return
        in_place = (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
        if any(tensor.dim() for tensor in here) or name in STRICT or (in_place and place(args[0]).type == "cpu"):
            raise RuntimeError(told)

    def _moved(self, func: Any, name: str, tensor: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        at, given = place(tensor), list(rest)
        target: torch.device = {"cpu": CPU, "cuda": torch.device("cuda", 0)}.get(name, at)
        like = next((value for value in (*rest, *kwargs.values()) if isinstance(value, Tensor)), None)
        asked = kwargs.get("device", rest[0] if rest and isinstance(rest[0], str | torch.device) else None)
        if like is not None:
            target = place(like)
        elif asked is not None:
            target = _gpu(asked) or torch.device(asked)
            real = "meta" if target.type == "meta" else "cpu"
            if "device" in kwargs:
                kwargs["device"] = real
            else:
                given[0] = real
        out: Tensor = tensor if name == "cuda" else func(tensor, *given, **kwargs)
        if target.type == "meta":
            return out
        if target != at and _storage(out) == _storage(tensor):
            out = out.clone(memory_format=torch.preserve_format)
        return out if target == CPU else _put(out, target)


@contextmanager
def pretended(synchronised: list[Any] | None = None) -> Iterator[None]:
    """Two GPUs. In `synchronised` is noted which were waited for; None: the current one."""
    waited, real = [] if synchronised is None else synchronised, torch.autocast
    cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "is_bf16_supported": lambda *_, **__: True,
        "synchronize": lambda device=None: waited.append(device),
        "get_device_name": lambda device=None: "a GPU that is not there",
    }
    with ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "autocast", lambda device_type, *a, **kw: real("cpu", *a, **kw)))
        # It asks the driver whether a graph is being captured.
        stack.enter_context(mock.patch.object(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _: None))
        stack.enter_context(PretendedGPU())
        yield
