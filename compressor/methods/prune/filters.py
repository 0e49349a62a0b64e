"""Base classes of the structured pruning methods: filter norms, and operations on the weights of coupled channels.

A paper defines the importance of channels and what happens to unimportant ones; `FilterPruning` maps channels to parameters.
All values here are per atom (see `channels/groups.py`): one channel of a single layer, or one channel of a whole residual
stream, which all its layers share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from compressor.channels import Channels, Mask, Verified, remove
from compressor.channels.groups import ROLES, Role
from compressor.channels.sizes import Ids
from compressor.channels.surgery import Cut, apply, plan
from compressor.data import Batch
from compressor.errors import Infeasible, UsageError
from compressor.methods.prune.importance import gather
from compressor.methods.widths import Scores, by_sensitivity, choose
from compressor.training import distributed
from compressor.training.method import Job, Made, Method, Progress, Selection

WORTHWHILE = 0.1  # fraction of the MACs that must be saved before channels are removed during training


def energies(model: nn.Module, channels: Channels, roles: Sequence[Role] = ("out",), p: int = 2) -> Scores:
    """Sum of |w|^p over the weights of each atom [atoms], without biases, norm layers and their statistics."""
    powers = {name: tensor.detach().float().abs().pow(p) for name, tensor in model.named_parameters() if tensor.dim() >= 2}
    return gather(channels, powers, (place for place in channels.places if place.role in roles))


def norms(model: nn.Module, channels: Channels, roles: Sequence[Role] = ("out",)) -> Scores:
    """L2 norm of the weights that produce (and, with role `in`, consume) each atom [atoms]."""
    return np.sqrt(energies(model, channels, roles))


class FilterPruning(Method):
    """Abstract. A method whose result is the network without its weak channels.

    Weights of `hard` channels are kept at zero, so `shrink` can remove these channels from the network during training. `weak`,
    `hard` and all scores are always indexed by the atoms of the original network.
    """

    weak: Tensor  # [atoms] bool: channels that would be removed if training ended now
    hard: Tensor  # [atoms] bool: subset of `weak` that is kept at zero
    gone: Tensor  # [atoms] bool: subset of `hard` that has been removed from the network

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        assert job.channels is not None, "a pruning method needs the channels of the model"
        self.channels = job.channels
        self.removed: Verified | None = None
        for name in ("weak", "hard", "gone"):
            self.register_buffer(name, torch.zeros(self.channels.atoms, dtype=torch.bool))
        self._wide: tuple[nn.Module, Cut] | None = None  # in a tuple, because a submodule would be trained and saved
        self._sites: list[Site] | None = None
        self.holds = False

    # What papers override ---------------------------------------------------------------------------------------------

    def scores(self, channels: Channels) -> Scores:
        """Importance of each atom [atoms]; the lowest are pruned first."""
        return norms(self.wide(), channels)

    def finish(self) -> nn.Module:
        if self.removed is None:
            self.remove()
        return self.model

    def made(self) -> Made:
        if self.removed is None:
            return Made()
        done, channels = self.removed, self.removed.channels
        groups = {layer: group.name for group in channels.groups for layer in group.layers}
        frozen = channels.frozen()
        return Made(
            done.cut,
            done.difference,
            planned={"macs": channels.macs.total(done.mask), "params": channels.params.total(done.mask)},
            remarks={**{row.name: row.reason for row in frozen}, **groups},
            frozen=frozen,
            warnings=[
                f"operator {operator} has no rule ({count} times): its channels were not pruned"
                for operator, count in channels.unknown_operators().items()
            ],
        )

    # Hard channels ----------------------------------------------------------------------------------------------------

    def begin_epoch(self, progress: Progress) -> None:
        self.holds = bool((self.hard & ~self.gone).any())  # once per epoch, because it synchronises with the GPU

    def end_step(self, batch: Batch) -> None:
        if self.holds:
            self.hold()

    # Operations -------------------------------------------------------------------------------------------------------

    def samples(self, images: int, batch_size: int = 128, split: Literal["train", "held_out"] = "train") -> Iterable[Batch]:
        """Batches of `images` images without augmentation, on the method's device. Raises UsageError if there is no data."""
        if self.job.images is None:
            raise UsageError("this method scores channels on training images: give --data, or use --method magnitude.")
        return self.job.images.batches(split, batch_size=batch_size, device=self.weak.device, augment=False, limit=images)

    def scale_weights(self, factors: Tensor, norms: bool = True) -> None:
        """Multiply the weights that produce each atom by its factor [atoms]; with `norms`, also the norm's scale and shift."""
        with torch.no_grad():
            for site, factor in self._spread(factors, ("out", "scale") if norms else ("out",)):
                site.parameter.mul_(factor)

    def scale_gradients(self, factors: Tensor, norms: bool = True) -> None:
        """The same for the gradients of these parameters."""
        for site, factor in self._spread(factors, ("out", "scale") if norms else ("out",)):
            if site.parameter.grad is not None:
                site.parameter.grad.mul_(factor)

    def hold(self) -> None:
        """Zero the hard channels and the weights that consume them, which would still count in the norms of other filters."""
        with torch.no_grad():
            for site, factor in self._spread((~self.hard).float(), ROLES):
                site.parameter.mul_(factor)

    def remove(self) -> None:
        """Remove the weak channels from the model and verify it. Groups whose removal breaks the model are not pruned."""
        device = self.weak.device
        self.removed = remove(self.wide(), self.channels, self.kept, self.job.inputs)
        if self.removed.mask.all():
            raise Infeasible(f"{self.job.goal.text}: no channel can be removed; `compress inspect` lists the reasons.")
        self._set_model(self.removed.model.to(device))

    def kept(self, channels: Channels) -> Mask:
        """Mask of the channels to keep; `channels` may have fewer prunable groups than at the start of the method."""
        return self._without(self.weak, channels)

    # Removal during training ------------------------------------------------------------------------------------------

    def shrink(self) -> Selection | None:
        if self.removed is not None or not self._saves():
            return None
        small = remove(self.wide(), self.channels, lambda channels: self._without(self.hard, channels), self.job.inputs)
        if small.channels is not self.channels:  # some group cannot be removed; `remove` reports it at the end
            return None
        before = self._wide[1].kept if self._wide is not None else {}
        self._narrow(small.model, small.cut, self.hard)
        return {
            f"model.{name}": {dim: _places_among(before.get(name, {}).get(dim), kept) for dim, kept in dims.items()}
            for name, dims in small.cut.kept.items()
        }

    def wide(self) -> nn.Module:
        """The model at its original width, with removed channels set to zero."""
        if self._wide is None:
            return self.model
        model, cut = self._wide
        wide = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        with torch.no_grad():
            for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
                if name not in wide:  # indices of a scatter
                    continue
                places = [torch.arange(size, device=tensor.device) for size in wide[name].shape]
                for dim, kept in cut.kept.get(name, {}).items():
                    places[dim] = torch.from_numpy(kept).to(tensor.device)
                if places:
                    wide[name][torch.meshgrid(*places, indexing="ij")] = tensor
                else:
                    wide[name].copy_(tensor)
        return model

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        gone = state_dict["gone"].to(self.weak.device)
        if gone.any():
            cut = plan(self.wide(), self.channels, ~gone.cpu().numpy())
            self._narrow(apply(self.wide(), cut), cut, gone)
        return super().load_state_dict(state_dict, strict, assign)

    def _saves(self) -> bool:
        """Whether removing the hard channels now saves enough MACs."""
        now, then = (self.channels.macs.total(~atoms.cpu().numpy()) for atoms in (self.gone, self.hard))
        return then <= (1 - WORTHWHILE) * now

    def _narrow(self, small: nn.Module, cut: Cut, gone: Tensor) -> None:
        """Continue with `small`, the wide model after `cut`: it lacks the atoms `gone`, whose weights are zero."""
        wide = self.wide()
        self._set_model(small)
        self._wide = wide, cut
        self.gone.copy_(gone)

    def _set_model(self, model: nn.Module) -> None:
        self.model, self._wide, self._sites = model, None, None

    # Channels in parameters --------------------------------------------------------------------------------------------

    def _without(self, atoms: Tensor, channels: Channels) -> Mask:
        """The mask of `channels`, which may have fewer groups than this method's, without the `atoms`."""
        own = self.channels.split(atoms.cpu().numpy())
        return channels.join({group.name: ~own[group.name] for group in channels.groups})

    def _spread(self, factors: Tensor, roles: Iterable[Role]) -> Iterator[tuple[Site, Tensor]]:
        """Each parameter with channels in one of the roles, with the factors of its channels, shaped to broadcast."""
        device = factors.device
        if self._sites is None or (self._sites and self._sites[0].atoms.device != device):
            self._sites = list(self._find_sites(device))
        padded = torch.cat([factors, factors.new_ones(1)])  # factor 1 for indices without an atom (-1)
        for site in self._sites:
            if site.role in roles:
                yield site, padded[site.atoms].to(site.parameter.dtype).reshape(site.shape)

    def _find_sites(self, device: torch.device) -> Iterator[Site]:
        parameters = dict(self.model.named_parameters())
        cut = self._wide[1].kept if self._wide is not None else {}
        for place in self.channels.places:
            parameter = parameters.get(place.tensor)
            if parameter is None:
                continue
            left = cut.get(place.tensor, {}).get(place.dim)
            atoms = place.atoms if left is None else place.atoms[left]
            shape = [-1 if dim == place.dim else 1 for dim in range(parameter.dim())]
            yield Site(parameter, torch.from_numpy(atoms).to(device), shape, place.role)


@dataclass(frozen=True)
class Site:
    """A parameter that produces, scales or consumes channels: `atoms` [size of the dimension], -1 if not prunable."""

    parameter: nn.Parameter
    atoms: Tensor
    shape: list[int]  # to which one value per channel is reshaped, to broadcast over the parameter
    role: Role


def _places_among(before: Ids | None, after: Ids) -> Ids:
    """The positions of the indices `after` in the sorted indices `before`; None: all indices."""
    return after if before is None else np.searchsorted(before, after)


class OneShot(FilterPruning):
    """Abstract. Prunes the globally least important channels in one step, before training, until the goal is met."""

    def kept(self, channels: Channels) -> Mask:
        return weakest(self.job, channels, self.scores(channels))

    def prepare(self) -> None:
        self.remove()


def over_group(channels: Channels, scores: Scores, size: Callable[[Scores], float]) -> Scores:
    """Scores [atoms] normalised by one value per group, such as its largest score, so that groups can be ranked together."""
    tiny = np.finfo(float).tiny
    scaled = [own / max(size(own), tiny) for own in channels.split(scores).values()]
    return np.concatenate(scaled) if scaled else scores


def weakest(job: Job, channels: Channels, scores: Scores) -> Mask:
    """The mask [atoms] that prunes the globally weakest channels until the job's goal is met.

    With measured sensitivity curves, these rank channels between groups, and `scores` within a group.
    """
    if job.curves is not None:
        scores = by_sensitivity(channels, scores, job.curves)
    mask = choose(channels, scores, job.goal, round_to=job.round_to, most=job.most, overhead=job.overhead)
    return distributed.agreed(mask)
