"""Intermediate activations, for papers that train a part of the network: layer inputs, and a cache of what is not trained.

    outputs, read = reads(model, ["fc1", "fc2"], images)    inputs of these layers, call by call
    first, then = halves(model, inputs)                     then(*first(images)) == model(images); `then` has all trained layers
    known = Remembered(first, limit)                        known(batch) is first(batch.inputs), computed once per image

If only the fully-connected layers are trained, `first` is the convolutions, which are most of the computation.
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
from compressor.network.inputs import AnyInputs, Inputs, call
from compressor.network.outputs import tensors_in

MOST = 4  # maximum number of values passed from the first half to the second
SLACK = 1e-4  # maximum difference relative to the largest output: the order of operators may differ

Function = Callable[[Any], Sequence[Any]]


def reads(model: nn.Module, names: Sequence[str], images: Any) -> tuple[Any, list[tuple[str, Tensor]]]:
    """The output of `model`, and (name, input) of each call of the modules in `names`, in the order of the calls."""
    read: list[tuple[str, Tensor]] = []

    def hear(name: str, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        read.append((name, next(iter((*args, *kwargs.values())))))

    with ExitStack() as stack:
        for name in names:
            hook = model.get_submodule(name).register_forward_pre_hook(partial(hear, name), with_kwargs=True)
            stack.callback(hook.remove)
        return call(model, images), read


# Two halves -----------------------------------------------------------------------------------------------------------


def halves(model: nn.Module, inputs: AnyInputs) -> tuple[Function, Callable[..., Any]] | None:
    """Split `model` before the first parameters that require a gradient, into a frozen part and one that consumes its output.

    Both share the model's parameters and run in its present mode. None if the model cannot be traced (for example, because it
    branches on values), if nothing precedes the trained layers, or if more than `MOST` values are passed between the halves.
    """
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception:  # the model's code runs on proxies, and can raise anything
        return None
    reading = _behind(graph, lambda node: node.op == "placeholder")
    trained = _behind(graph, lambda node: node.op == "output" or _is_trained(model, node))
    known = reading - trained
    crossing = [node for node in graph.nodes if node in known and any(user in trained for user in node.users)]
    if len(crossing) > MOST or all(node.op == "placeholder" for node in crossing):
        return None
    first, then = fx.Graph(), fx.Graph()  # nodes that do not depend on images, such as position embeddings, are in both
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
    """The nodes for which `starts` is true, and all nodes that depend on them."""
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
    """Whether the halves reproduce the model's output; they do not if its code modifies a shared tensor in place."""
    samples = Inputs.of(inputs).random(2, like=model)
    with torch.no_grad():
        pairs = list(zip(tensors_in(model(*samples)), tensors_in(then(*first(*samples))), strict=True))
    return all(bool((a - b).abs().max() <= SLACK * a.abs().max()) for a, b in pairs)


# Once per image -----------------------------------------------------------------------------------------------------


class Remembered:
    """Cache of `function(images)`, without gradients: computed once per image while the results fit in `limit` bytes.

    Nothing is cached unless `function` returns tensors with one row per image. Images are identified by their index, so they
    must not be augmented (no shift, no flip).
    """

    def __init__(self, function: Function, limit: float) -> None:
        self.function, self.limit = function, limit
        self.rows: dict[int, tuple[Tensor, ...]] = {}  # index of an image -> its row of each tensor
        self.bytes = 0
        self._keeps: bool | None = None  # None: not known before the first batch

    def __call__(self, batch: Batch) -> list[Any]:
        """The result of `function` for the whole batch."""
        if self._keeps is None:
            self._keeps = self.limit > 0 and isinstance(batch.inputs, Tensor) and self._by_row(batch.inputs)
        if not self._keeps:
            return self._made(batch.inputs)
        indices = batch.indices.tolist()
        new = [place for place, index in enumerate(indices) if index not in self.rows]
        found = dict(zip([indices[place] for place in new], self._rows(batch.inputs[new]), strict=True)) if new else {}
        rows = [self.rows[index] if index in self.rows else found[index] for index in indices]
        size = sum(row.nbytes for each in found.values() for row in each)
        if self.bytes + size <= self.limit:
            self.rows.update(found)
            self.bytes += size
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def _made(self, images: Any) -> list[Any]:
        with torch.no_grad():
            return list(self.function(images))

    def _rows(self, images: Tensor) -> list[tuple[Tensor, ...]]:
        tensors = [tensor.clone() for tensor in self._made(images)]  # a view would keep the whole tensor in memory
        return list(zip(*(tensor.unbind() for tensor in tensors), strict=True))

    def _by_row(self, images: Tensor) -> bool:
        """Whether all results are tensors with one row for one image, and two for two."""
        return all(
            isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(some)
            for some in (images[:1], images[:2])
            for value in self._made(some)
        )
