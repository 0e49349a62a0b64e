"""What a network computes on its way, for papers that train a part of it: what layers read, and what is computed only once.

    answers, read = reads(model, ["fc1", "fc2"], images)    what these layers read, call by call
    first, then = halves(model, inputs)                     then(*first(images)) is model(images), and all training is in `then`
    known = Remembered(first, limit)                        known(batch) is first(batch.images), computed once for each image

Where the fully-connected layers alone are trained, `first` is the convolutions, and most of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor.data import Batch
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.outputs import tensors_in

MOST = 4  # values that cross from the first half to the second
SLACK = 1e-4  # largest difference over largest output: the same operators, perhaps in another order

Function = Callable[[Tensor], Sequence[Any]]


def reads(model: nn.Module, names: Sequence[str], images: Tensor) -> tuple[Any, list[tuple[str, Tensor]]]:
    """What `model` answers; and the names of modules, of `names`, with what each read, in the order of their calls."""
    read: list[tuple[str, Tensor]] = []

    def hear(name: str, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        read.append((name, next(iter((*args, *kwargs.values())))))

    with ExitStack() as stack:
        for name in names:
            hook = model.get_submodule(name).register_forward_pre_hook(partial(hear, name), with_kwargs=True)
            stack.callback(hook.remove)
        return model(images), read


# Two halves -----------------------------------------------------------------------------------------------------------


def halves(model: nn.Module, inputs: AnyInputs) -> tuple[Function, Callable[..., Any]] | None:
    """All that `model` computes before the first parameters that want a gradient, and the rest, which reads what that gives.

    Both share the model's parameters, and run in the mode that it is in now. None when the model cannot be traced, as one that
    branches on values, when nothing comes before what is trained, or when more than `MOST` values would cross.
    """
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception:  # the model's code meets stand-ins for tensors, and fails as it likes
        return None
    reading = _behind(graph, lambda node: node.op == "placeholder")
    trained = _behind(graph, lambda node: node.op == "output" or _is_trained(model, node))
    known = reading - trained
    crossing = [node for node in graph.nodes if node in known and any(user in trained for user in node.users)]
    if len(crossing) > MOST or all(node.op == "placeholder" for node in crossing):
        return None
    first, then = fx.Graph(), fx.Graph()  # what no image has a part in, such as a table of positions, is in both
    copies: dict[fx.Node, fx.Node] = {}
    for node in (node for node in graph.nodes if node not in trained):
        copies[node] = first.node_copy(node, copies.__getitem__)
    first.output(tuple(copies[node] for node in crossing))
    copies = {node: then.placeholder(node.name) for node in crossing}
    for node in (node for node in graph.nodes if node not in known):
        copies[node] = then.node_copy(node, copies.__getitem__)
    both = fx.GraphModule(model, first), fx.GraphModule(model, then)
    return both if _same(model, *both, inputs) else None


def _behind(graph: fx.Graph, starts: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """The nodes at which something starts, and all that depend on them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if starts(node) or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _is_trained(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return any(parameter.requires_grad for parameter in model.get_submodule(str(node.target)).parameters())
    return node.op == "get_attr" and bool(getattr(attrgetter(str(node.target))(model), "requires_grad", False))


def _same(model: nn.Module, first: Function, then: Callable[..., Any], inputs: AnyInputs) -> bool:
    """Whether the halves answer as the model does: its code may change a tensor in place that the other half has read."""
    samples = Inputs.of(inputs).random(2, like=model)
    with torch.no_grad():
        pairs = list(zip(tensors_in(model(*samples)), tensors_in(then(*first(*samples))), strict=True))
    return all(bool((a - b).abs().max() <= SLACK * a.abs().max()) for a, b in pairs)


# Once for each image --------------------------------------------------------------------------------------------------


class Remembered:
    """What `function` makes of images, without gradients, computed once for each image while all fits in `limit` bytes.

    Nothing is kept where `function` gives something else than tensors with one row an image. An image is known by its index, so
    it must always be the same: not moved, not mirrored.
    """

    def __init__(self, function: Function, limit: float) -> None:
        self.function, self.limit = function, limit
        self.rows: dict[int, tuple[Tensor, ...]] = {}  # index of an image -> its row of each tensor
        self.bytes = 0
        self._keeps: bool | None = None  # None: not known before the first batch

    def __call__(self, batch: Batch) -> list[Any]:
        """What `function` gives for the whole batch."""
        if self._keeps is None:
            self._keeps = self.limit > 0 and self._by_row(batch.images)
        if not self._keeps:
            return self._made(batch.images)
        indices = batch.indices.tolist()
        new = [place for place, index in enumerate(indices) if index not in self.rows]
        found = dict(zip([indices[place] for place in new], self._rows(batch.images[new]), strict=True)) if new else {}
        rows = [self.rows[index] if index in self.rows else found[index] for index in indices]
        size = sum(row.nbytes for each in found.values() for row in each)
        if self.bytes + size <= self.limit:
            self.rows.update(found)
            self.bytes += size
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def _made(self, images: Tensor) -> list[Any]:
        with torch.no_grad():
            return list(self.function(images))

    def _rows(self, images: Tensor) -> list[tuple[Tensor, ...]]:
        tensors = [tensor.clone() for tensor in self._made(images)]  # a part of a larger tensor would keep all of it
        return list(zip(*(tensor.unbind() for tensor in tensors), strict=True))

    def _by_row(self, images: Tensor) -> bool:
        """Whether there are tensors with one row for one image, and two for two."""
        return all(
            isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(some)
            for some in (images[:1], images[:2])
            for value in self._made(some)
        )
