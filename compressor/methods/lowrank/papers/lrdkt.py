"""Every layer split in two at one share of its energy, then trained with what the original answers and computes on its way.

Lin, Ji, Chen, Tao, Luo: "Holistic CNN Compression via Low-rank Decomposition with Knowledge Transfer", TPAMI 2019. It is in no
open archive: only the abstract was at hand, and the authors' code, from which all formulas and numbers here are.

A convolution W [N, C, k, k] becomes rank filters of k x 1 and N of 1 x k, a linear layer two linear ones. With the unfolding
M [C k, k N] of W, or W itself, the nearest such pair is in closed form

    M ~ (U_K S_K^1/2) (S_K^1/2 V_K^T),     K the smallest rank with   sum_{i <= K} s_i^2 / sum_i s_i^2 > theta

and theta is the same for all layers, the first and the last included. Then all is trained with

    L = CE(labels) + 0.003 H(softmax(z_T / 5), softmax(z_S / 5)) + 0.0005 h(first) + 0.0005 h(last)

z_T and z_S are the logits of the original and of the compressed network, H is the cross-entropy (without the factor T^2 of
Hinton et al.), and a hint h is half the mean of the squared differences between what a layer reads in one and in the other.

`--energy 0.7 --round-to 1 --no-repair` is the authors' theta of 0.7, but that K is one of 96 ranks where a layer has more. With
`--rate` and `--target`, theta is the one that meets the budget, and what is left of the budget is spent on single ranks.

Unlike the authors' code: the bias goes to the second factor, where the code drops it unless the network's file has it; and a
layer stays whole where no rank above theta saves anything. So do grouped convolutions (of which the authors' AlexNet has some,
that were split as the ungrouped ones that they stand for), and those whose kernel is of one row or column already.
Interpretation: hints are at what the first and the last linear layer read: pool5 and fc7 in VGG, for which the code states
them. Interpretation: the original answers as in use, without dropout, which the compressed network trains with.
Interpretation: SGD with momentum 0.9, a rate of 0.001 and a weight decay of 0.0005, as the code has it; biases too.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from compressor.data import Batch
from compressor.errors import UsageError
from compressor.methods.lowrank.decompositions import SPLITS, Layer, Split
from compressor.methods.lowrank.factor import LowRank
from compressor.methods.output_cache import reads
from compressor.network.inputs import Inputs
from compressor.network.meta_device import frozen
from compressor.network.outputs import logits_of
from compressor.training.method import Job


class Lrdkt(LowRank):
    """Splits all layers at one share of their energy, then trains with the original's answers and features beside the labels.

    soft: weight of the cross-entropy to the original's softened answers
    hints: weight of the difference from what the first and the last linear layer of the original read
    temperature: what logits are divided by to soften the answers
    ranks: how the ranks are chosen: knapsack, greedy, energy, minmax, uniform or evbmf
    whiten: split linear layers and 1 x 1 convolutions by what they give on images (when there are any), not by their weights
    """

    paper = "Lin et al., TPAMI 2019"
    lr = 1e-3
    weight_decay = 5e-4

    def __init__(
        self,
        job: Job,
        *,
        soft: float = 0.003,
        hints: float = 0.0005,
        temperature: float = 5.0,
        ranks: str = "energy",
        whiten: bool = False,
    ) -> None:
        super().__init__(job, ranks=ranks, whiten=whiten)
        if not temperature > 0:
            raise UsageError(f"--set temperature={temperature}: give a number above 0.")
        self.soft, self.hints, self.temperature = soft, hints, temperature

    def splits(self, name: str, layer: Layer) -> Sequence[Split]:
        if isinstance(layer, nn.Linear):
            return [SPLITS["linear"]]
        return [SPLITS["channel" if max(layer.kernel_size) == 1 else "separable"]]  # of a 1 x 1 kernel, both are the same

    @cached_property
    def original(self) -> nn.Module:
        """What is learned from. No part of this module, so that it is not saved with it."""
        return frozen(self.job.model, next(self.model.parameters()).device)

    @cached_property
    def hinted(self) -> dict[str, str]:
        """The first and the last linear layer in the order of execution -> what their hints are called."""
        linear = [name for name, module in self.original.named_modules() if isinstance(module, nn.Linear)]
        _, read = reads(self.original, linear, *Inputs.of(self.job.inputs).random(1, like=self.original))
        ends = read[:1] + [end for end in read[-1:] if end[1] is not read[0][1]]  # one tensor is one hint
        return {name: hint for (name, _), hint in zip(ends, ("first_hint", "last_hint"), strict=False)}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        wanted, shown = self._seen(self.original, batch.images)
        outputs, read = self._seen(self.model, batch.images)
        terms = replace(self.job.task, teacher=None).loss(outputs, batch)
        softened, known = (logits_of(answers).float() / self.temperature for answers in (outputs, wanted))
        terms["teacher"] = self.soft * F.cross_entropy(softened, known.softmax(1))
        for name, hint in self.hinted.items():
            terms[hint] = self.hints * 0.5 * F.mse_loss(read[name].float(), shown[name].float())
        return terms

    def _seen(self, model: nn.Module, images: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """What `model` answers, and what its hinted layers read."""
        answers, read = reads(model, list(self.hinted), images)
        return answers, dict(read)
