"""Taylor pruning: importance is the squared first-order change of the loss when a channel is removed.

Molchanov, Mallya, Tyree, Frosio, Kautz: "Importance Estimation for Neural Network Pruning", CVPR 2019, arXiv 1906.10771,
section 3.1 (one parameter, and sets of parameters) and section 3.2 (gates).

    I_i = mean over batches of ( sum over the weights w of channel i of  w dL/dw )^2

The sum is over all weights, biases and norm parameters that produce or consume a coupled channel. It is squared per batch, and
averaged over batches of training images. The change of the loss is comparable across layers, so channels are ranked globally
without normalisation.

With `together=false` each term is squared before the sum, sum of (w dL/dw)^2: the paper's form for parameters that are assumed
to be independent.
Unlike the paper: all channels are pruned in one step before training, instead of a few channels every few training steps.
`by_group=true` divides scores by the mean of their group of coupled channels, which the paper finds unnecessary; on ResNet-20
at half its MACs it gave higher accuracy.
"""

import numpy as np

from compressor.channels import Channels
from compressor.methods.prune.filters import OneShot, over_group
from compressor.methods.prune.importance import first_order, gather
from compressor.methods.widths import Scores
from compressor.training.method import Job


class Taylor(OneShot):
    """Prunes the channels whose removal changes the loss least to first order, ranked globally, then fine-tunes.

    images: number of training images for scoring
    together: square the sum over the weights of a channel; otherwise sum the squares
    by_group: divide each score by the mean of its group of coupled channels
    """

    paper = "Molchanov et al., CVPR 2019 (arXiv 1906.10771)"
    looks = True
    labelled = True

    def __init__(self, job: Job, *, images: int = 1024, together: bool = True, by_group: bool = False) -> None:
        super().__init__(job)
        self.images, self.together, self.by_group = images, together, by_group

    def scores(self, channels: Channels) -> Scores:
        scores = np.zeros(channels.atoms)
        for terms in first_order(self.model, self.job.objective, self.samples(self.images)):
            if self.together:
                scores += gather(channels, terms, channels.places) ** 2
            else:
                scores += gather(channels, {name: term.square() for name, term in terms.items()}, channels.places)
        return over_group(channels, scores, np.mean) if self.by_group else scores
