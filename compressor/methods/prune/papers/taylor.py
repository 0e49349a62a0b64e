"""Channels without which the loss would hardly change, to first order, go first.

Molchanov, Mallya, Tyree, Frosio, Kautz: "Importance Estimation for Neural Network Pruning", CVPR 2019, arXiv 1906.10771,
section 3.1 (one parameter, and sets of parameters) and section 3.2 (gates).

    I_i = mean over batches of ( sum over the weights w of channel i of  w dL/dw )^2

The sum is over all weights, biases and norms of a coupled channel: what makes it and what reads it. The square of the change of
the loss is taken once a batch, and the mean runs over batches of training images. Because the loss is the same for all layers,
so is the scale of I, and all channels are ranked together.

With `together=false` each weight is squared by itself, sum of (w dL/dw)^2: the paper's other form, for sets whose members are
taken to be independent.
Unlike the paper: all channels go at once, before training, instead of some every few steps of it. For a cut so large,
`by_group=true` divides scores by the mean of their group of coupled channels, which the paper finds needless: of a ResNet-20
cut to half its MACs it left more accuracy.
"""

import numpy as np

from compressor.channels import Channels
from compressor.methods.prune.filters import OneShot, over_group
from compressor.methods.prune.importance import first_order, gather
from compressor.methods.widths import Scores
from compressor.training.method import Job


class Taylor(OneShot):
    """Cuts the channels whose absence changes the loss least, to first order, then fine-tunes.

    images: how many training images to score channels on
    together: square the sum over a channel's weights; otherwise sum their squares
    by_group: divide each score by the mean of its group
    """

    paper = "Molchanov et al., CVPR 2019 (arXiv 1906.10771)"
    looks = True

    def __init__(self, job: Job, *, images: int = 1024, together: bool = True, by_group: bool = False) -> None:
        super().__init__(job)
        self.images, self.together, self.by_group = images, together, by_group

    def scores(self, channels: Channels) -> Scores:
        scores = np.zeros(channels.atoms)
        for terms in first_order(self.model, self.job.task, self.samples(self.images)):
            if self.together:
                scores += gather(channels, terms, channels.places) ** 2
            else:
                scores += gather(channels, {name: term.square() for name, term in terms.items()}, channels.places)
        return over_group(channels, scores, np.mean) if self.by_group else scores
