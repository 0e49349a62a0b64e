"""What pruning papers share: how strong a filter is, and the verbs by which its fate is changed.

A paper says which channels are weak and what happens to them; `FilterPruning` knows where they live. Every number here is per
atom (see `channels/groups.py`): one channel of a plain layer, or one channel of a whole residual stream.
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

WORTHWHILE = 0.1  # of the MACs must be saved before a network that trains is made smaller


def energies(model: nn.Module, channels: Channels, roles: Sequence[Role] = ("out",), p: int = 2) -> Scores:
    """Sum of |w|^p over the weights of each atom [atoms], in layers' weights alone (no biases, norms or statistics)."""
    powers = {name: tensor.detach().float().abs().pow(p) for name, tensor in model.named_parameters() if tensor.dim() >= 2}
    return gather(channels, powers, (place for place in channels.places if place.role in roles))


def norms(model: nn.Module, channels: Channels, roles: Sequence[Role] = ("out",)) -> Scores:
    """L2 norm of the weights that make (and, with role `in`, read) each atom [atoms]."""
    return np.sqrt(energies(model, channels, roles))


class FilterPruning(Method):
    """Abstract. A method whose result is the network without its weak channels.

    Channels that are `hard` are zero, and held there: nothing can bring them back. So they need not wait for the end: `shrink`
    takes them out of the network while it trains. `weak`, `hard` and all scores are of the original's atoms all the same.
    """

    weak: Tensor  # [atoms] bool: those that would go if training ended now
    hard: Tensor  # [atoms] bool, some of the weak
    gone: Tensor  # [atoms] bool, those of the hard that were taken out already

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        assert job.channels is not None, "a method of pruning is told what can be cut"
        self.channels = job.channels
        self.removed: Verified | None = None
        for name in ("weak", "hard", "gone"):
            self.register_buffer(name, torch.zeros(self.channels.atoms, dtype=torch.bool))
        self._wide: tuple[nn.Module, Cut] | None = None  # a tuple, for a module would be trained and saved, too
        self._sites: list[Site] | None = None
        self.holds = False

    # What papers override ---------------------------------------------------------------------------------------------

    def scores(self, channels: Channels) -> Scores:
        """How strong each atom is [atoms]; low goes first."""
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
                f"operator {operator} has no rule ({count} times): what it touches was left whole"
                for operator, count in channels.unknown_operators().items()
            ],
        )

    # Hard channels ----------------------------------------------------------------------------------------------------

    def begin_epoch(self, progress: Progress) -> None:
        self.holds = bool((self.hard & ~self.gone).any())  # asked once: an answer a step would stall a GPU

    def end_step(self, batch: Batch) -> None:
        if self.holds:
            self.hold()

    # Verbs ------------------------------------------------------------------------------------------------------------

    def samples(self, images: int, batch_size: int = 128, split: Literal["train", "held_out"] = "train") -> Iterable[Batch]:
        """Batches of so many images as they are, on the method's device. Raises UsageError when there are none."""
        if self.job.images is None:
            raise UsageError("this method scores channels on images: give --data, or take --method magnitude.")
        return self.job.images.batches(split, batch_size=batch_size, device=self.weak.device, augment=False, limit=images)

    def scale_weights(self, factors: Tensor, norms: bool = True) -> None:
        """Multiply the weights that make each atom by its factor [atoms]; with `norms`, their norm's scale and shift too."""
        with torch.no_grad():
            for site, factor in self._spread(factors, ("out", "scale") if norms else ("out",)):
                site.parameter.mul_(factor)

    def scale_gradients(self, factors: Tensor, norms: bool = True) -> None:
        """The same for the gradients of those weights, and of norms' scales and shifts."""
        for site, factor in self._spread(factors, ("out", "scale") if norms else ("out",)):
            if site.parameter.grad is not None:
                site.parameter.grad.mul_(factor)

    def hold(self) -> None:
        """Set hard channels to zero, and the weights that read them: these have no use, but would count in others' norms."""
        with torch.no_grad():
            for site, factor in self._spread((~self.hard).float(), ROLES):
                site.parameter.mul_(factor)

    def remove(self) -> None:
        """Take the weak channels out of the model, verified. Groups that break the model are held whole."""
        device = self.weak.device
        self.removed = remove(self.wide(), self.channels, self.kept, self.job.inputs)
        if self.removed.mask.all():
            raise Infeasible(f"{self.job.goal.text}: no channel could be removed. See `compress inspect` for the reasons.")
        self._set_model(self.removed.model.to(device))

    def kept(self, channels: Channels) -> Mask:
        """What stays, for an analysis that may hold more groups whole than the one this method began with."""
        return self._without(self.weak, channels)

    # Getting smaller while training -----------------------------------------------------------------------------------

    def shrink(self) -> Selection | None:
        if self.removed is not None or not self._saves():
            return None
        small = remove(self.wide(), self.channels, lambda channels: self._without(self.hard, channels), self.job.inputs)
        if small.channels is not self.channels:  # some group cannot go; `remove` will say so in the end
            return None
        before = self._wide[1].kept if self._wide is not None else {}
        self._narrow(small.model, small.cut, self.hard)
        return {
            f"model.{name}": {dim: _places_among(before.get(name, {}).get(dim), kept) for dim, kept in dims.items()}
            for name, dims in small.cut.kept.items()
        }

    def wide(self) -> nn.Module:
        """The model at the original's width: channels that are gone are zero."""
        if self._wide is None:
            return self.model
        model, cut = self._wide
        wide = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        with torch.no_grad():
            for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
                if name not in wide:  # a place to scatter to
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
        """Whether taking out what is hard by now is worth the while."""
        now, then = (self.channels.macs.total(~atoms.cpu().numpy()) for atoms in (self.gone, self.hard))
        return then <= (1 - WORTHWHILE) * now

    def _narrow(self, small: nn.Module, cut: Cut, gone: Tensor) -> None:
        """Go on with `small`, what `cut` leaves of the wide model: it lacks the atoms `gone`, which are zero."""
        wide = self.wide()
        self._set_model(small)
        self._wide = wide, cut
        self.gone.copy_(gone)

    def _set_model(self, model: nn.Module) -> None:
        self.model, self._wide, self._sites = model, None, None

    # Where channels live ----------------------------------------------------------------------------------------------

    def _without(self, atoms: Tensor, channels: Channels) -> Mask:
        """What stays of `channels`, which may have fewer groups than this method's, without the `atoms`."""
        own = self.channels.split(atoms.cpu().numpy())
        return channels.join({group.name: ~own[group.name] for group in channels.groups})

    def _spread(self, factors: Tensor, roles: Iterable[Role]) -> Iterator[tuple[Site, Tensor]]:
        """Each parameter that has channels in one of the roles, and their factors [atoms], ready to broadcast."""
        device = factors.device
        if self._sites is None or (self._sites and self._sites[0].atoms.device != device):
            self._sites = list(self._find_sites(device))
        padded = torch.cat([factors, factors.new_ones(1)])  # places without an atom (-1) stay as they are
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
    """A parameter that makes, scales or reads channels: `atoms` [size of the dimension], -1 where a channel cannot be cut."""

    parameter: nn.Parameter
    atoms: Tensor
    shape: list[int]  # that lets one number a channel be multiplied with the parameter
    role: Role


def _places_among(before: Ids | None, after: Ids) -> Ids:
    """Where the places `after` are among those `before`; None: all there are."""
    return after if before is None else np.searchsorted(before, after)


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
        scores = by_sensitivity(channels, scores, job.curves)
    mask = choose(channels, scores, job.goal, round_to=job.round_to, most=job.most, overhead=job.overhead)
    return distributed.agreed(mask)
