"""Filters far from the middle of their layer's distribution go, whatever they contribute.

Xu, Diao, Cui, Yang, Li, Xu: "PFGDF: Pruning Filter via Gaussian Distribution Feature for Deep Neural Networks Acceleration",
2020, arXiv 2006.12963, section 3.

    s_{l,j} = sum of |W| over filter j of layer l;    mu_l, sd_l: mean and standard deviation of s over the layer
    keep j  iff  | s_{l,j} - mu_l | <= z sd_l

In a layer whose s are normal, z keeps the share erf(z / sqrt 2): 38 % at 0.5, 68 % at 1. One z holds for the whole network: the
one that meets the goal.

Interpretation: the abstract says that filters go for being insignificant in the distribution, and that a smaller interval is to
describe the layer; that the interval lies around the mean, and the statistic, are reconstructed. `keep` offers the others: the
tails, | s - mu | > z sd, and the upper part, s >= mu - z sd, which is a norm compared inside the layer.

With `automatic=true` each layer has its own z, and images decide, layer by layer from the first:

    z <- the largest | s - mu | / sd of the layer
    while the held-out accuracy of the network is at most `tolerance` below the original's:  z <- z - step
    take back the last step; on to the next layer

Interpretation: after the last layer the tolerance is doubled, and the first begins again where it stopped, until the goal is
met. Held-out images choose here, so the accuracy they give afterwards is a little too good; the test images' is not.
Unlike the paper: there is no training between two layers; all of it comes at the end.
"""

from collections.abc import Callable

import numpy as np
import torch

from compressor.channels import Channels, Mask, mask
from compressor.channels.surgery import plan
from compressor.data import Batch
from compressor.errors import UsageError
from compressor.methods.prune.filters import OneShot, energies
from compressor.methods.widths import Scores, cost_of, reached
from compressor.network.outputs import logits_of
from compressor.training.method import Job


class PFGDF(OneShot):
    """Cuts the filters outside an interval around the mean L1 norm of their layer, then fine-tunes.

    keep: centre (near the mean), tails (far from it) or upper (whatever is not far below it)
    automatic: find the interval of each layer by the accuracy on held-out images, which it then needs
    tolerance: share of the held-out images that may go wrong at first, beyond those that the original gets wrong
    step: how much narrower the interval gets at a time, in standard deviations
    images: how many held-out images to measure the accuracy on
    """

    paper = "Xu et al., 2020 (arXiv 2006.12963)"

    def __init__(
        self,
        job: Job,
        *,
        keep: str = "centre",
        automatic: bool = False,
        tolerance: float = 0.01,
        step: float = 0.25,
        images: int = 1000,
    ) -> None:
        super().__init__(job)
        if keep not in KEEP:
            raise UsageError(f"--set keep={keep}: pfgdf keeps {', '.join(KEEP)}.")
        if not (tolerance > 0 and step > 0 and images > 0):
            raise UsageError("pfgdf: tolerance, step and images must be above 0.")
        self.keep, self.automatic, self.tolerance, self.step, self.images = keep, automatic, tolerance, step, images

    def scores(self, channels: Channels) -> Scores:
        strengths = np.concatenate(
            [self.strengths(own) for own in channels.split(energies(self.model, channels, p=1)).values()]
        )
        return self.order(channels, strengths) if self.automatic else strengths

    def strengths(self, sums: Scores) -> Scores:
        """How deep inside the interval the filters of one layer lie, in standard deviations [filters]; `sums` are their s."""
        return KEEP[self.keep]((sums - sums.mean()) / max(sums.std(), np.finfo(float).tiny))

    # Layer by layer ---------------------------------------------------------------------------------------------------

    def order(self, channels: Channels, strengths: Scores) -> Scores:
        """The place of each channel in the order in which the search lets them go [atoms]; what it never reached comes last."""
        held_out = list(self.samples(self.images, split="held_out"))
        if not held_out:
            raise UsageError("pfgdf: automatic=true chooses on held-out images, and the data have none: leave it away.")
        layers = np.repeat(np.arange(len(channels.groups)), [group.size for group in channels.groups])  # [atoms]
        bounds = [strengths[layers == layer].min() for layer in range(len(channels.groups))]  # what is weaker is gone
        turns = np.full(channels.atoms, np.inf)
        least = self.accuracy(channels, held_out, channels.all_kept())
        tolerance, enough = self.tolerance, self.asked(channels)
        while tolerance < 2:  # at a tolerance of 1 all goes that can
            for layer, bound in enumerate(bounds):
                own = layers == layer
                for bounds[layer] in np.arange(bound, strengths[own].max(), self.step):
                    gone = np.isfinite(turns) | own & (strengths < bounds[layer] + self.step)
                    if gone[own].mean() > self.job.most or self.accuracy(channels, held_out, ~gone) < least - tolerance:
                        break
                    turns[gone & np.isinf(turns)] = np.isfinite(turns).sum()
                    if reached(channels, ~gone, self.job.goal, self.job.overhead) >= enough:
                        return ranked(turns, strengths)
            tolerance *= 2
        return ranked(turns, strengths)

    def asked(self, channels: Channels) -> float:
        """The share of the goal's quantity that is to go."""
        goal = self.job.goal
        if goal.share is not None:
            return goal.share
        return goal.asked(cost_of(channels, goal.quantity).total(channels.all_kept()) + self.job.overhead)

    def accuracy(self, channels: Channels, held_out: list[Batch], kept: Mask) -> float:
        """Share of the held-out images that the network gets right without the channels that are not `kept`."""
        network = mask(self.model, plan(self.model, channels, kept)).eval()
        with torch.no_grad():
            hits = [logits_of(network(batch.images)).argmax(1) == batch.targets for batch in held_out]
        return float(torch.cat(hits).float().mean())


def ranked(turns: Scores, strengths: Scores) -> Scores:
    """The place of each channel when they go in turns, and in one turn the weakest first [atoms]."""
    places = np.empty(len(turns))
    places[np.lexsort((strengths, turns))] = np.arange(len(turns))
    return places


KEEP: dict[str, Callable[[Scores], Scores]] = {  # what is strong, of (s - mu) / sd
    "centre": lambda deviations: -np.abs(deviations),
    "tails": np.abs,
    "upper": lambda deviations: deviations,
}
