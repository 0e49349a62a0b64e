"""Linear layers split in two, then all of them trained at once for the error of the network's output.

Lin, Ji, Guo, Li: "Towards Convolutional Neural Networks Compression via Global Error Reconstruction", IJCAI 2016. It is in no
open archive, and only the abstract was at hand. It says: fully-connected layers are first split one by one by singular value
decomposition, and then all factors are optimised together by back-propagation, so that the error between the outputs of the
original and of the compressed network becomes the smallest. All below that is more than this is an interpretation.

A. Each linear layer z = W a + b becomes z = P Q a + b:

    W ~ P Q,    P = U_r S_r^1/2  [outputs, rank],    Q = S_r^1/2 V_r^T  [rank, inputs]

B. All P, Q and b are trained for the global error, the ranks staying what they are:

    J = 1 / (2 B) sum over B images of || z(x) - z'(x) ||^2        z of the original, z' of the compressed network

What a layer loses is passed on through activations to the layers behind it. J sees that, and a later layer can make up for it.
Tuned each by itself (`--set joint=false`) to what the original reads and gives there, no layer knows of the errors before it.

Interpretation: the output are the logits, or the probabilities (`--set output=probabilities`). Interpretation: the square root
of S on both sides, as in the same authors' LRDKT. Interpretation: ranks are shared out like those of other methods here.
Interpretation: SGD with momentum 0.9, a rate of 0.001 and no weight decay, which pulls away from the original's answers.

Labels are unused. Convolutions and norms stay as they are, norms in the mode in which they answer, and dropout is off, in the
original too. So all that is computed before the first split layer is the same in each epoch, and so are the original's answers:
both are computed once for each image and kept, as far as they fit into memory (`--set cache`), where the network's code can be
traced. For that, images are neither moved nor mirrored. Nothing here needs statistics of batch norms measured anew; to begin
with the plain decomposition of A, give `--no-repair`.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from compressor.data import Batch
from compressor.errors import UsageError, did_you_mean
from compressor.methods.lowrank.decompositions import SPLITS, Layer, Seen, Split
from compressor.methods.lowrank.factor import LowRank
from compressor.methods.lowrank.factorable import Site
from compressor.methods.lowrank.rank_rules import Choice
from compressor.methods.output_cache import Remembered, halves, reads
from compressor.network.inputs import Inputs
from compressor.network.meta_device import frozen
from compressor.network.outputs import logits_of
from compressor.network.replacements import replaced
from compressor.training.method import Job

Pairs = Callable[[Batch], list[tuple[Tensor, Tensor]]]
OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda logits: logits,
    "probabilities": lambda logits: logits.softmax(1),
}


class Ger(LowRank):
    """Splits linear layers, then trains all factors together to give the original's output, without labels.

    joint: train all factors together for the network's output; false: each layer by itself, for its own
    output: what is to be as the original gives it: logits or probabilities
    cache: gigabytes at most for what is computed once for each image; 0 computes it anew each time
    ranks: how the ranks are chosen: knapsack, greedy, energy, minmax, uniform or evbmf
    whiten: decide by what layers give on images (when there are any), not by their weights alone
    """

    paper = "Lin et al., IJCAI 2016"
    lr = 1e-3
    weight_decay = 0.0
    augments = False
    recalibrates = False

    def __init__(
        self,
        job: Job,
        *,
        joint: bool = True,
        output: str = "logits",
        cache: float = 2.0,
        ranks: str = "knapsack",
        whiten: bool = False,
    ) -> None:
        super().__init__(job, ranks=ranks, whiten=whiten)
        if output not in OUTPUTS:
            raise UsageError(f"--set output={output}: known are {', '.join(OUTPUTS)}{did_you_mean(output, OUTPUTS) or '.'}")
        if not cache >= 0:
            raise UsageError(f"--set cache={cache}: give gigabytes, 0 or more.")
        self.joint, self.output, self.cache = joint, OUTPUTS[output], cache * 1e9

    def splits(self, name: str, layer: Layer) -> Sequence[Split]:
        return [SPLITS["linear"]] if isinstance(layer, nn.Linear) else []

    def use(self, sites: Sequence[Site], choice: Choice, seen: Mapping[str, Seen]) -> None:
        super().use(sites, choice, seen)
        self.dense = {site.name: site.layer for site in sites if site.name in self.chains}

    def prepare(self) -> None:
        self.factor()
        self.eval().requires_grad_(False)
        for chain in self.chains.values():
            chain.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Always as the network answers: norms keep their statistics, and nothing is dropped."""
        return super().train(False)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        squares = [(given.float() - wanted.float()).square().sum() for given, wanted in self.pairs(batch)]
        return {"reconstruction": torch.stack(squares).sum() / (2 * len(batch.images))}

    # What is given, and what is wanted --------------------------------------------------------------------------------

    @cached_property
    def pairs(self) -> Pairs:
        device = next(self.model.parameters()).device
        original = frozen(replaced(copy.deepcopy(self.model), self.dense), device)
        return self._of_the_network(original) if self.joint else self._of_layers(original)

    def _of_the_network(self, original: nn.Module) -> Pairs:
        """The output alone."""
        first, then = halves(self.model, self.job.inputs) or (lambda images: [], None)
        known = Remembered(lambda images: [*first(images), self.output(logits_of(original(images)))], self.cache)

        def pairs(batch: Batch) -> list[tuple[Tensor, Tensor]]:
            *read, wanted = known(batch)
            answers = self.model(batch.images) if then is None else then(*read)
            return [(self.output(logits_of(answers)), wanted)]

        return pairs

    def _of_layers(self, original: nn.Module) -> Pairs:
        """What each split layer makes of what the original reads there."""

        def read(images: Tensor) -> list[tuple[str, Tensor]]:
            return reads(original, list(self.chains), images)[1]

        calls = [name for name, _ in read(*Inputs.of(self.job.inputs).random(1, like=original))]
        layers = dict(original.named_modules())
        known = Remembered(lambda images: [t for name, x in read(images) for t in (x, layers[name](x))], self.cache)

        def pairs(batch: Batch) -> list[tuple[Tensor, Tensor]]:
            values = known(batch)
            return [(self.chains[name](x), z) for name, x, z in zip(calls, values[::2], values[1::2], strict=True)]

        return pairs
