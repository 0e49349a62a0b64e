"""Global and dynamic pruning (GDP): a global filter mask that is updated during training, so that filters can recover.

Lin, Ji, Li, Wu, Huang, Zhang: "Accelerating Convolutional Networks via Global & Dynamic Filter Pruning", IJCAI 2018,
pages 2425-2432 (no preprint), section 3. The first-order criterion goes back to Molchanov, Tyree, Karras, Aila, Kautz:
"Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017, arXiv 1611.06440, section 2.2.

    Theta_{l,j} = | sum of W dL/dW + b dL/db over filter j of layer l |,    the mean over batches of training images
    m_{l,j}     = 1 for the filters with the largest Theta over all layers, as many as the goal allows; 0 for the others

    every N steps:  set all masks to 1, compute Theta without training, update the masks
    in between:     train with W m and b m in the forward pass
    at the end:     freeze the masks, remove the masked filters, fine-tune the pruned network

Theta is not normalised by layer; at least 5 % of the channels of each group are kept. The paper prunes for 30 epochs and
fine-tunes for 20: here masks are frozen after 0.6 of the training, and at least one epoch before its end.

Gradients of the masked forward pass are applied to W itself (straight-through estimator), so masked weights are still trained.
With `straight_through=false` masked weights are fixed until the next update of the masks, as in the authors' code.

Unlike the authors' code: filters are ranked by the mean of Theta over all batches, not by its value on the last batch. No
weight decay is applied to masked weights. Masks are also updated at the start of each epoch.
Unlike the paper: m multiplies the weights that consume the channel of a filter, instead of the filter. The output of the
network is the same, and so is Theta after a ReLU (see `importance.py`). But batch norm statistics of the masked filter stay
valid, and no ReLU at zero blocks its gradient; the straight-through gradient applies to the masked consumer weights. A layer
that is scattered into a residual stream is masked at its norm, or, without a norm, at its own weights.
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
    """Masks the filters with the least first-order effect on the loss, updates the masks in training, then fine-tunes.

    every: number of training steps between updates of the masks
    images: number of training images for scoring at each update
    ending: fraction of training after which masks are frozen and masked filters removed
    straight_through: train masked weights by the straight-through gradient; otherwise they are fixed
    """

    paper = "Lin et al., IJCAI 2018; Molchanov et al., ICLR 2017 (arXiv 1611.06440)"
    trains = True
    looks = True
    labelled = True

    def __init__(
        self, job: Job, *, every: int = 500, images: int = 3200, ending: float = 0.6, straight_through: bool = True
    ) -> None:
        super().__init__(job)
        self.every, self.images, self.ending, self.straight_through = every, images, ending, straight_through
        names = dict(self.model.named_parameters())
        self.gates = [place for place in gates(self.channels) if place.tensor in names]
        self.masked = list(dict.fromkeys(place.tensor for place in self.gates))
        self.asleep = nn.ParameterList(  # values of the masked weights without the mask
            nn.Parameter(torch.zeros_like(names[name]), requires_grad=False) for name in self.masked
        )

    def scores(self, channels: Channels) -> Scores:
        """Theta, summed over batches [atoms]."""
        places, total = gates(channels), np.zeros(channels.atoms)
        for terms in first_order(self.model, self.job.objective, self.samples(self.images)):
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
        """Score all filters, including masked ones, and mask those with the lowest scores."""
        with torch.no_grad():
            for weight, asleep in zip(self.weights(), self.asleep, strict=True):
                weight.add_(asleep)
                asleep.zero_()
        kept = weakest(self.job, self.channels, self.scores(self.channels))
        self.weak.copy_(torch.from_numpy(~kept))
        self.sites = list(zip(self.weights(), self.asleep, self.hidden(), strict=True))
        self.hide()

    def hide(self, learned: bool = True) -> None:
        """Set masked weights to zero, after adding their values, or their updates since the last step, to `asleep`."""
        with torch.no_grad():
            for weight, asleep, hidden in self.sites:
                if learned:
                    asleep.add_(weight * hidden)
                weight.masked_fill_(hidden, 0)

    def freeze(self) -> None:
        """Make masked filters hard, so that they can be removed during training."""
        self.hard.copy_(self.weak)
        self.hold()
        for asleep in self.asleep:
            asleep.detach().zero_()

    def weights(self) -> Iterator[nn.Parameter]:
        return (self.model.get_parameter(name) for name in self.masked)

    def hidden(self) -> Iterator[Tensor]:
        """The mask of weak filters for each masked parameter, shaped to broadcast."""
        for name, weight in zip(self.masked, self.weights(), strict=True):
            hidden = torch.zeros([1] * weight.dim(), dtype=torch.bool, device=weight.device)
            for place in self.gates:
                if place.tensor == name:
                    atoms = torch.from_numpy(place.atoms).to(weight.device)
                    own = self.weak[atoms] & (atoms >= 0)  # [size of the dimension]
                    hidden = hidden | own.reshape([-1 if dim == place.dim else 1 for dim in range(weight.dim())])
            yield hidden
