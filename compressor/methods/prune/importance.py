"""Channel importance: sums over the weights of a channel, first-order changes of the loss, and the cost saved by its removal.

All values are per atom (see `channels/groups.py`). A *gate* m_i multiplies channel i; m_i = 1 keeps the channel, and

    dL/dm_i = sum of w dL/dw over the weights at which the gate m_i is placed

Multiplying a channel is the same as multiplying the weights that consume it, so gates are placed at the consumers: after norm
and ReLU, and at every end of a residual stream. If a channel has no consumer of its own (a layer that is scattered into a
residual stream, queries and keys of attention), its gate is at the norm that follows, or, without a norm, at the weights and
biases that produce it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from compressor.channels import Channels
from compressor.channels.groups import Cost, Place
from compressor.data import Batch
from compressor.methods.widths import Scores
from compressor.training.objective import Objective


def gather(channels: Channels, values: Mapping[str, Tensor], places: Iterable[Place]) -> Scores:
    """Sum of `values` over the indices that belong to each atom at `places` [atoms].

    `values` maps names of parameters to tensors of the same shape; places in other tensors are ignored.
    """
    total = np.zeros(channels.atoms)
    for place in places:
        if place.tensor not in values:
            continue
        value = values[place.tensor]
        others = [dim for dim in range(value.dim()) if dim != place.dim]
        sums = (value.sum(dim=others) if others else value).cpu().numpy()  # [size of the dimension]
        owned = place.atoms >= 0
        np.add.at(total, place.atoms[owned], sums[owned])
    return total


def gates(channels: Channels) -> list[Place]:
    """The places of all gates: at the consumers of an atom, else at its norm, else at its producer."""
    makers = {module_of(place) for place in channels.places if place.role == "out"}

    def rank(place: Place) -> int:
        return 0 if place.role == "in" else 1 if module_of(place) not in makers else 2

    first = np.full(channels.atoms + 1, 3)  # the last element is for indices without an atom (-1)
    for place in channels.places:
        np.minimum.at(first, place.atoms, rank(place))
    here = (replace(place, atoms=np.where(first[place.atoms] == rank(place), place.atoms, -1)) for place in channels.places)
    return [place for place in here if (place.atoms >= 0).any()]


def module_of(place: Place) -> str:
    return place.tensor.rpartition(".")[0]


def first_order(model: nn.Module, objective: Objective, batches: Iterable[Batch]) -> Iterator[dict[str, Tensor]]:
    """w dL/dw of every weight, by parameter, for each of `batches`: the first-order decrease of the loss if w is set to zero.

    The network runs in eval mode. Its weights, their gradients and the batch norm statistics are not changed.
    """
    with objective.task.learning(model):
        for batch in batches:
            weights = {n: p.detach().requires_grad_() for n, p in model.named_parameters() if p.is_floating_point()}
            with torch.enable_grad():
                outputs = objective.task.call(partial(_called, model, weights), batch.inputs)
                terms = objective.loss(outputs, batch)
                gradients = torch.autograd.grad(list(terms.values()), list(weights.values()), materialize_grads=True)
            yield {name: (w * g).detach() for (name, w), g in zip(weights.items(), gradients, strict=True)}


def _called(model: nn.Module, weights: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """The outputs of `model` with other weights."""
    return functional_call(model, weights, args, kwargs)


def savings(channels: Channels, table: Cost) -> Scores:
    """The cost saved by removing one channel alone [atoms]: the same for all channels of a group."""
    full, saved = table.total(channels.all_kept()), []
    for group in channels.groups:
        one = np.arange(group.size) > 0
        saved.append(np.full(group.size, full - table.total(channels.join({group.name: one}))))
    return np.concatenate(saved) if saved else np.zeros(0)
