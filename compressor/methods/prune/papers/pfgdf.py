"""Pruning filters via Gaussian distribution features (PFGDF): filters far from the mean of their layer are pruned.

Xu, Diao, Cui, Yang, Li, Xu: "PFGDF: Pruning Filter via Gaussian Distribution Feature for Deep Neural Networks Acceleration",
2020, arXiv 2006.12963, section 3.

    s_{l,j} = sum of |W| over filter j of layer l;    mu_l, sd_l: mean and standard deviation of s over the layer
    keep j  iff  | s_{l,j} - mu_l | <= z sd_l

If s is normally distributed in a layer, the fraction erf(z / sqrt 2) of its filters is kept: 38 % at z = 0.5, 68 % at z = 1.
The same z is used for the whole network: the one that meets the goal.

Interpretation: according to the abstract, filters that are insignificant in the distribution are pruned, and a smaller interval
describes the layer; the statistic s, and an interval centred at the mean, are reconstructed. `keep` offers the alternatives:
the tails, | s - mu | > z sd, and the upper part, s >= mu - z sd, a norm criterion within the layer.

With `automatic=true` each layer has its own z, found by the accuracy on held-out images, from the first layer to the last:

    z <- the largest | s - mu | / sd of the layer
    while the held-out accuracy is at most `tolerance` below that of the original:  z <- z - step
    undo the last step; continue with the next layer

Interpretation: after the last layer the tolerance is doubled, and the search continues at the first layer, until the goal is
met. The held-out images select the filters, so the held-out accuracy is biased upwards afterwards; the test accuracy is not.
Other networks than classifiers have the headline score of their task in place of the accuracy.
Unlike the paper: the network is not fine-tuned after each layer, but once at the end.
"""

from collections.abc import Callable

import numpy as np

from compressor.channels import Channels, Mask, mask
from compressor.channels.surgery import plan
from compressor.data import Batch
from compressor.errors import UsageError
from compressor.methods.prune.filters import OneShot, energies
from compressor.methods.widths import Scores, cost_of, reached
from compressor.training.method import Job


class PFGDF(OneShot):
    """Prunes the filters whose L1 norm lies outside an interval around the mean of their layer, then fine-tunes.

    keep: filters to keep: centre (near the mean), tails (far from it) or upper (not far below it)
    automatic: find the interval of each layer by the headline score on held-out images, which are then required
    tolerance: initial tolerance of the search: loss of the held-out score, 0.01 is one point of a score in per cent
    step: step of the search for the interval, in standard deviations
    images: number of held-out images to measure the score on
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
            raise UsageError(f"--set keep={keep} is unknown: use {', '.join(KEEP)}.")
        if not (tolerance > 0 and step > 0 and images > 0):
            raise UsageError("pfgdf: tolerance, step and images must be above 0.")
        self.keep, self.automatic, self.tolerance, self.step, self.images = keep, automatic, tolerance, step, images

    def scores(self, channels: Channels) -> Scores:
        strengths = np.concatenate(
            [self.strengths(own) for own in channels.split(energies(self.model, channels, p=1)).values()]
        )
        return self.order(channels, strengths) if self.automatic else strengths

    def strengths(self, sums: Scores) -> Scores:
        """Scores of the filters of one layer [filters], in standard deviations, by `keep`; `sums` are their s."""
        return KEEP[self.keep]((sums - sums.mean()) / max(sums.std(), np.finfo(float).tiny))

    # Layer by layer ---------------------------------------------------------------------------------------------------

    def order(self, channels: Channels, strengths: Scores) -> Scores:
        """The rank of each channel in the order in which the search prunes it [atoms]; channels it does not reach come last."""
        held_out = list(self.samples(self.images, split="held_out"))
        if not held_out:
            raise UsageError("--set automatic=true needs held-out images, and the data set has none: omit it.")
        layers = np.repeat(np.arange(len(channels.groups)), [group.size for group in channels.groups])  # [atoms]
        bounds = [strengths[layers == layer].min() for layer in range(len(channels.groups))]  # lower ones are pruned
        turns = np.full(channels.atoms, np.inf)
        least = self.accuracy(channels, held_out, channels.all_kept())
        tolerance, enough = self.tolerance, self.asked(channels)
        while tolerance < 2:  # at a tolerance of 1 no accuracy is required
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
        """The fraction of the goal's quantity to remove."""
        goal = self.job.goal
        if goal.share is not None:
            return goal.share
        return goal.asked(cost_of(channels, goal.quantity).total(channels.all_kept()) + self.job.overhead)

    def accuracy(self, channels: Channels, held_out: list[Batch], kept: Mask) -> float:
        """The headline score on held-out images of the network pruned to the channels `kept`; negative if less is better."""
        score = self.job.task.measured(mask(self.model, plan(self.model, channels, kept)), held_out).compute(intervals=False)[0]
        return score.sign * score.value


def ranked(turns: Scores, strengths: Scores) -> Scores:
    """The rank of each channel [atoms], ordered by turn, and within a turn by strength."""
    places = np.empty(len(turns))
    places[np.lexsort((strengths, turns))] = np.arange(len(turns))
    return places


KEEP: dict[str, Callable[[Scores], Scores]] = {  # importance as a function of (s - mu) / sd
    "centre": lambda deviations: -np.abs(deviations),
    "tails": np.abs,
    "upper": lambda deviations: deviations,
}
