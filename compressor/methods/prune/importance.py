"""What a channel is worth: sums over what is its own, what the loss says of them, and what goes with it.

All numbers are per atom (see `channels/groups.py`). A *gate* is a number by which a channel is multiplied, 1 while it is there:

    dL/dm_i = sum of w dL/dw over the weights at which the gate m_i can sit

To multiply a channel is to multiply the weights that read it, so the gates sit there: behind norm and ReLU, and wherever a
stream ends. Where nothing reads a channel alone (a layer that is scattered into a stream, queries and keys of attention), they
sit on the norm behind it, and where there is none, on the weights and biases that make it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from compressor.channels import Channels
from compressor.channels.groups import Cost, Place
from compressor.data import Batch
from compressor.methods.widths import Scores
from compressor.network.meta_device import evaluating
from compressor.tasks.classify import Classify


def gather(channels: Channels, values: Mapping[str, Tensor], places: Iterable[Place]) -> Scores:
    """Sum of `values` over the indices that each atom owns at `places` [atoms].

    `values` have the shapes of the parameters whose names they bear; places in other tensors count for nothing.
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
    """Where the gates of all channels sit: each atom at its readers, else at its norm, else at what makes it."""
    makers = {module_of(place) for place in channels.places if place.role == "out"}

    def rank(place: Place) -> int:
        return 0 if place.role == "in" else 1 if module_of(place) not in makers else 2

    first = np.full(channels.atoms + 1, 3)  # the last one is for places without an atom (-1)
    for place in channels.places:
        np.minimum.at(first, place.atoms, rank(place))
    here = (replace(place, atoms=np.where(first[place.atoms] == rank(place), place.atoms, -1)) for place in channels.places)
    return [place for place in here if (place.atoms >= 0).any()]


def module_of(place: Place) -> str:
    return place.tensor.rpartition(".")[0]


def first_order(model: nn.Module, task: Classify, batches: Iterable[Batch]) -> Iterator[dict[str, Tensor]]:
    """w dL/dw of every weight, by parameter, once for each of `batches`: to first order, what the loss falls by without w.

    The network answers as in evaluation: neither its weights nor their gradients, its statistics or its dropout take notice.
    """
    with evaluating(model):
        for batch in batches:
            weights = {n: p.detach().requires_grad_() for n, p in model.named_parameters() if p.is_floating_point()}
            with torch.enable_grad():
                terms = task.loss(functional_call(model, weights, (batch.images,)), batch)
                gradients = torch.autograd.grad(list(terms.values()), list(weights.values()), materialize_grads=True)
            yield {name: (w * g).detach() for (name, w), g in zip(weights.items(), gradients, strict=True)}


def savings(channels: Channels, table: Cost) -> Scores:
    """What a cost falls by when a channel goes and all others stay [atoms]: the same for all of its group."""
    full, saved = table.total(channels.all_kept()), []
    for group in channels.groups:
        one = np.arange(group.size) > 0
        saved.append(np.full(group.size, full - table.total(channels.join({group.name: one}))))
    return np.concatenate(saved) if saved else np.zeros(0)
