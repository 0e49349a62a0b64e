"""What pruning papers share: how strong a filter is, and the verbs by which its fate is changed.

A paper says which channels are weak and what happens to them; `FilterPruning` knows where they live. Every number here is per
atom (see `channels/groups.py`): one channel of a plain layer, or one channel of a whole residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from compressor import budget
from compressor.budget import Scores
from compressor.channels import Channels, Mask, Verified, remove
from compressor.channels.groups import Place, Role
from compressor.errors import Infeasible, UsageError
from compressor.method import Batch, Job, Method


def energies(model: nn.Module, channels: Channels, roles: Iterable[Role] = ("out",), p: int = 2) -> Scores:
    """Sum of |w|^p over the weights of each atom [atoms], in layers' weights alone (no biases, norms or statistics)."""
    wanted = set(roles)
    places: dict[str, list[Place]] = {}
    for place in channels.places:
        if place.role in wanted:
            places.setdefault(place.tensor, []).append(place)
    total = np.zeros(channels.atoms)
    for name, tensor in model.named_parameters():
        if name not in places or tensor.dim() < 2:
            continue
        powers = tensor.detach().float().abs().pow(p)
        for place in places[name]:
            others = [dim for dim in range(tensor.dim()) if dim != place.dim]
            power = powers.sum(dim=others).cpu().numpy()  # [size of the dimension]
            owned = place.atoms >= 0
            np.add.at(total, place.atoms[owned], power[owned])
    return total


def norms(model: nn.Module, channels: Channels, roles: Iterable[Role] = ("out",)) -> Scores:
    """L2 norm of the weights that make (and, with role `in`, read) each atom [atoms]."""
    return np.sqrt(energies(model, channels, roles))


class FilterPruning(Method):
    """Abstract. A method whose result is the network without its weak channels."""

    weak: Tensor  # [atoms] bool

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.channels = job.channels
        self.removed: Verified | None = None
        self.register_buffer("weak", torch.zeros(job.channels.atoms, dtype=torch.bool))

    # What papers override ---------------------------------------------------------------------------------------------

    def scores(self, channels: Channels) -> Scores:
        """How strong each atom is [atoms]; low goes first."""
        return norms(self.model, channels)

    def finish(self) -> nn.Module:
        if self.removed is None:
            self.remove()
        return self.model

    # Verbs ------------------------------------------------------------------------------------------------------------

    def samples(self, images: int, batch_size: int = 128) -> Iterable[Batch]:
        """Batches of so many training images as they are, on the method's device. Raises UsageError when there are none."""
        if self.job.images is None:
            raise UsageError("this method scores channels on training images: give --data, or take --method magnitude.")
        device = self.weak.device
        return self.job.images.batches("train", batch_size=batch_size, device=device, augment=False, limit=images)

    def scale_weights(self, factor: float, norms: bool = True) -> None:
        """Multiply the weights that make weak channels by `factor`; with `norms`, their norm's scale and shift too."""
        with torch.no_grad():
            for parameter, scale, role in self._factors(factor):
                if role == "out" or norms:
                    parameter.mul_(scale)

    def remove(self) -> None:
        """Take the weak channels out of the model, verified. Groups that break the model are held whole."""
        device = self.weak.device
        self.removed = remove(self.model, self.channels, self.kept, self.job.inputs)
        if self.removed.mask.all():
            raise Infeasible(f"{self.job.goal.text}: no channel could be removed. See `compress inspect` for the reasons.")
        self.model = self.removed.model.to(device)

    def kept(self, channels: Channels) -> Mask:
        """What stays, for an analysis that may hold more groups whole than the one this method began with."""
        weak = dict(zip((g.name for g in self.channels.groups), self._by_group(), strict=True))
        return channels.join({group.name: ~weak[group.name] for group in channels.groups})

    # Where weak channels live -----------------------------------------------------------------------------------------

    def _by_group(self) -> list[Mask]:
        return list(self.channels.split(self.weak.cpu().numpy()).values())

    def _factors(self, factor: float) -> Iterable[tuple[nn.Parameter, Tensor, Role]]:
        """Each parameter that makes or scales weak channels, and what to multiply it by, ready to broadcast."""
        parameters = dict(self.model.named_parameters())
        for place in self.channels.places:
            parameter = parameters.get(place.tensor)
            if parameter is None or place.role == "in":
                continue
            atoms = torch.from_numpy(place.atoms).to(self.weak.device)
            weak = self.weak[atoms] & (atoms >= 0)  # [size of the dimension]
            shape = [1] * parameter.dim()
            shape[place.dim] = -1
            yield parameter, torch.where(weak, factor, 1.0).to(parameter.dtype).reshape(shape), place.role


class OneShot(FilterPruning):
    """Abstract. The weakest channels of all groups together go at once, before training, until the goal is met."""

    def kept(self, channels: Channels) -> Mask:
        return weakest(self.job, channels, self.scores(channels))

    def prepare(self) -> None:
        self.remove()


def over_group(channels: Channels, scores: Scores, size: Callable[[Scores], float]) -> Scores:
    """Scores [atoms] divided by one number a group, such as its largest score: so that groups can be ranked together."""
    tiny = np.finfo(float).tiny
    scaled = [own / max(size(own), tiny) for own in channels.split(scores).values()]
    return np.concatenate(scaled) if scaled else scores


def weakest(job: Job, channels: Channels, scores: Scores) -> Mask:
    """What stays when the globally weakest channels go until the job's goal is met [atoms].

    Where it was measured what each group costs, that decides between groups, and `scores` inside them.
    """
    if job.curves is not None:
        scores = budget.by_sensitivity(channels, scores, job.curves)
    return budget.choose(channels, scores, job.goal, round_to=job.round_to, most=job.most, overhead=job.overhead)
