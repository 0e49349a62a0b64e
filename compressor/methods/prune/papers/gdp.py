"""Global and dynamic pruning: one list of all filters, chosen anew again and again, so that a missed filter comes back.

Lin, Ji, Li, Wu, Huang, Zhang: "Accelerating Convolutional Networks via Global & Dynamic Filter Pruning", IJCAI 2018,
pages 2425-2432 (it has no preprint), section 3. The first-order criterion goes back to Molchanov, Tyree, Karras, Aila, Kautz:
"Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017, arXiv 1611.06440, section 2.2.

    Theta_{l,j} = | sum of W dL/dW + b dL/db over filter j of layer l |,    the mean over batches of training images
    m_{l,j}     = 1 for the filters of largest Theta of all layers together, as many as the goal leaves; 0 for the others

    every N steps:  all masks 1;  Theta without training;  new masks
    in between:     training, with W m and b m in the forward pass
    in the end:     masks are frozen, what is masked is cut, and the rest is fine-tuned

There is no normalisation by layer; at least one channel in twenty of each group stays. The paper prunes for 30 epochs and
fine-tunes for 20: masks are frozen after 0.6 of the training, and one epoch before its end at the latest.

Gradients are those of the masked forward pass, but reach W itself (straight through), so that masked weights keep learning.
With `straight_through=false` masked weights rest until the masks are chosen anew, as in the authors' code.

Unlike the authors' code: filters are ranked by the mean of Theta over all batches, not by its value at the last of them. Masked
weights are not decayed. Masks are also chosen at the beginning of each epoch, so that short epochs see some.
Unlike the paper: m multiplies the weights that read a filter's channel, and not the filter. The network is the same, and so is
Theta behind a ReLU (see `importance.py`). But a batch norm goes on measuring the filter, which would otherwise come
back with the statistics of a dead one, and no ReLU at zero stands between it and its gradient: those weights are the ones that
learn straight through. A layer that is scattered is masked at its norm, or at itself.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from compressor.channels import Channels
from compressor.data import Batch
from compressor.methods.prune.filters import FilterPruning, weakest
from compressor.methods.prune.importance import first_order, gates, gather
from compressor.methods.widths import Scores
from compressor.training.method import Job, Progress


class GDP(FilterPruning):
    """Masks the filters that matter least to the loss, chooses them anew while it trains, then cuts them and fine-tunes.

    every: how many steps of training pass until masks are chosen anew
    images: how many training images to choose them on
    ending: the share of training after which masks are frozen
    straight_through: masked weights learn as if they were not masked; otherwise they rest
    """

    paper = "Lin et al., IJCAI 2018; Molchanov et al., ICLR 2017 (arXiv 1611.06440)"
    trains = True
    looks = True

    def __init__(
        self, job: Job, *, every: int = 500, images: int = 3200, ending: float = 0.6, straight_through: bool = True
    ) -> None:
        super().__init__(job)
        self.every, self.images, self.ending, self.straight_through = every, images, ending, straight_through
        names = dict(self.model.named_parameters())
        self.gates = [place for place in gates(self.channels) if place.tensor in names]
        self.masked = list(dict.fromkeys(place.tensor for place in self.gates))
        self.asleep = nn.ParameterList(  # what masked weights would be
            nn.Parameter(torch.zeros_like(names[name]), requires_grad=False) for name in self.masked
        )

    def scores(self, channels: Channels) -> Scores:
        """Theta, summed over batches [atoms]."""
        places, total = gates(channels), np.zeros(channels.atoms)
        for terms in first_order(self.model, self.job.task, self.samples(self.images)):
            total += np.abs(gather(channels, terms, places))
        return total

    # The loop ---------------------------------------------------------------------------------------------------------

    def begin_epoch(self, progress: Progress) -> None:
        super().begin_epoch(progress)
        self.steps, self.frozen = 0, bool(self.hard.any())
        if not self.frozen:
            self.choose()

    def edit_gradients(self) -> None:
        if not self.frozen and not self.straight_through:
            for weight, _, hidden in self.sites:
                if weight.grad is not None:
                    weight.grad.masked_fill_(hidden, 0)

    def end_step(self, batch: Batch) -> None:
        super().end_step(batch)
        if self.frozen:
            return
        self.hide(learned=self.straight_through)
        self.steps += 1
        if self.steps % self.every == 0:
            self.choose()

    def end_epoch(self, progress: Progress) -> None:
        if not self.frozen and progress.epoch + 1 >= min(self.ending * progress.epochs, progress.epochs - 1):
            self.freeze()

    # Masks ------------------------------------------------------------------------------------------------------------

    def choose(self) -> None:
        """Score all filters, masked or not, and mask the weakest."""
        with torch.no_grad():
            for weight, asleep in zip(self.weights(), self.asleep, strict=True):
                weight.add_(asleep)
                asleep.zero_()
        kept = weakest(self.job, self.channels, self.scores(self.channels))
        self.weak.copy_(torch.from_numpy(~kept))
        self.sites = list(zip(self.weights(), self.asleep, self.hidden(), strict=True))
        self.hide()

    def hide(self, learned: bool = True) -> None:
        """Set masked weights to zero. What they were, or have learned since they were zero, is added to what is asleep."""
        with torch.no_grad():
            for weight, asleep, hidden in self.sites:
                if learned:
                    asleep.add_(weight * hidden)
                weight.masked_fill_(hidden, 0)

    def freeze(self) -> None:
        """Masked filters become zero for good, and so can leave the network while it trains."""
        self.hard.copy_(self.weak)
        self.hold()
        for asleep in self.asleep:
            asleep.detach().zero_()

    def weights(self) -> Iterator[nn.Parameter]:
        return (self.model.get_parameter(name) for name in self.masked)

    def hidden(self) -> Iterator[Tensor]:
        """Where the masks of weak filters sit in each masked parameter, ready to broadcast."""
        for name, weight in zip(self.masked, self.weights(), strict=True):
            hidden = torch.zeros([1] * weight.dim(), dtype=torch.bool, device=weight.device)
            for place in self.gates:
                if place.tensor == name:
                    atoms = torch.from_numpy(place.atoms).to(weight.device)
                    own = self.weak[atoms] & (atoms >= 0)  # [size of the dimension]
                    hidden = hidden | own.reshape([-1 if dim == place.dim else 1 for dim in range(weight.dim())])
            yield hidden
