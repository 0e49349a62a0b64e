"""Global error reconstruction (GER): SVD of linear layers, then joint optimisation of all factors for the network output.

Lin, Ji, Guo, Li: "Towards Convolutional Neural Networks Compression via Global Error Reconstruction", IJCAI 2016. It is in no
open archive, and only the abstract was available: fully-connected layers are first decomposed one by one by singular value
decomposition, and then all factors are optimised jointly by back-propagation to minimise the reconstruction error between the
outputs of the original and of the compressed network. Everything beyond this is an interpretation.

A. Each linear layer z = W a + b is replaced by z = P Q a + b:

    W ~ P Q,    P = U_r S_r^1/2  [outputs, rank],    Q = S_r^1/2 V_r^T  [rank, inputs]

B. All P, Q and b are trained to minimise the global error, at fixed ranks:

    J = 1 / (2 B) sum over B images of || z(x) - z'(x) ||^2        z of the original, z' of the compressed network

The error of a layer propagates through the activations to later layers. J includes this, so later layers can compensate for it.
With `--set joint=false` each layer is trained separately to reproduce its output in the original from its input there, which
ignores the errors of earlier layers.

Interpretation: the output is the logits, or the probabilities (`--set output=probabilities`). Interpretation: the square root
of S on both sides, as in the same authors' LRDKT. Interpretation: ranks are selected as in the other low-rank methods.
Interpretation: SGD with momentum 0.9, a learning rate of 0.001 and no weight decay, which would move the outputs away from
the original.

Labels are not used. Convolutions and norms are frozen, norms are in eval mode, and dropout is off, also in the original. The
activations before the first factored layer and the outputs of the original are therefore the same in every epoch: if the
network can be traced, they are computed once per image and cached, up to a memory limit (`--set cache`). For this reason
images are not augmented. Batch norm statistics need not be re-estimated; `--no-repair` starts the training from the plain
decomposition of A.
"""

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
from compressor.network.copying import clone_network
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
    """Factors linear layers by SVD, then trains all factors jointly to reproduce the output of the original, without labels.

    joint: train all factors jointly for the output of the network; false: each layer separately for its own output
    output: output to reproduce: logits or probabilities
    cache: memory limit in gigabytes for cached activations of images; 0 disables the cache
    ranks: rank selection rule: knapsack, greedy, energy, minmax, uniform or evbmf
    whiten: minimise the error of layer outputs on images (if there are any) instead of the error of the weights
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
            raise UsageError(
                f"--set output={output} is unknown: use {' or '.join(OUTPUTS)}{did_you_mean(output, OUTPUTS) or '.'}"
            )
        if not cache >= 0:
            raise UsageError(f"--set cache={cache} must be 0 or more, in gigabytes.")
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
        """Always eval mode: batch norm statistics are fixed, and dropout is off."""
        return super().train(False)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        squares = [(given.float() - wanted.float()).square().sum() for given, wanted in self.pairs(batch)]
        return {"reconstruction": torch.stack(squares).sum() / (2 * batch.size)}

    # Outputs and targets ----------------------------------------------------------------------------------------------

    @cached_property
    def pairs(self) -> Pairs:
        device = next(self.model.parameters()).device
        original = frozen(replaced(clone_network(self.model), self.dense), device)
        return self._of_the_network(original) if self.joint else self._of_layers(original)

    def _of_the_network(self, original: nn.Module) -> Pairs:
        """Pairs of network outputs: compressed and original."""
        first, then = halves(self.model, self.job.inputs) or (lambda images: [], None)
        known = Remembered(
            lambda images: [*first(images), self.output(logits_of(self.job.task.call(original, images)))], self.cache
        )

        def pairs(batch: Batch) -> list[tuple[Tensor, Tensor]]:
            *read, wanted = known(batch)
            answers = self.job.task.call(self.model, batch.inputs) if then is None else then(*read)
            return [(self.output(logits_of(answers)), wanted)]

        return pairs

    def _of_layers(self, original: nn.Module) -> Pairs:
        """Pairs of layer outputs, factored and original, for the inputs of the layers in the original."""

        def read(images: Tensor) -> list[tuple[str, Tensor]]:
            return reads(original, list(self.chains), images)[1]

        calls = [name for name, _ in read(*Inputs.of(self.job.inputs).random(1, like=original))]
        layers = dict(original.named_modules())
        known = Remembered(lambda images: [t for name, x in read(images) for t in (x, layers[name](x))], self.cache)

        def pairs(batch: Batch) -> list[tuple[Tensor, Tensor]]:
            values = known(batch)
            return [(self.chains[name](x), z) for name, x, z in zip(calls, values[::2], values[1::2], strict=True)]

        return pairs
