"""Low-rank decomposition with knowledge transfer (LRDKT): one energy threshold for all layers, then distillation with hints.

Lin, Ji, Chen, Tao, Luo: "Holistic CNN Compression via Low-rank Decomposition with Knowledge Transfer", TPAMI 2019. It is in no
open archive: only the abstract was available, and the authors' code, which is the source of all formulas and values here.

A convolution W [N, C, k, k] is decomposed into `rank` filters of k x 1 and N filters of 1 x k, a linear layer into two linear
layers. With the unfolding M [C k, k N] of W, or W itself, the best approximation has a closed form

    M ~ (U_K S_K^1/2) (S_K^1/2 V_K^T),     K the smallest rank with   sum_{i <= K} s_i^2 / sum_i s_i^2 > theta

where theta is the same for all layers, including the first and the last. The network is then trained with

    L = CE(labels) + 0.003 H(softmax(z_T / 5), softmax(z_S / 5)) + 0.0005 h(first) + 0.0005 h(last)

z_T and z_S are the logits of the original (teacher) and of the compressed network (student), H is the cross-entropy (without
the factor T^2 of Hinton et al.), and a hint h is half the mean squared difference of the inputs of a layer in both networks.

`--energy 0.7 --round-to 1 --no-repair` sets the authors' theta of 0.7, except that K is one of 96 candidate ranks if a layer
has more. With `--rate` and `--target`, theta is the one that meets the budget, and the rest of the budget is spent on single
ranks.

Unlike the authors' code: the bias is in the second factor, where the code drops it unless the network's file has it; and a
layer is not factored if no rank above theta reduces its cost. Grouped convolutions (the authors' AlexNet has some, which were
decomposed as equivalent ungrouped ones) and kernels with a single row or column are not factored either.
Interpretation: hints are at the inputs of the first and the last linear layer: pool5 and fc7 in VGG, as in the code.
Interpretation: the teacher runs in eval mode, without dropout; the student is trained with dropout.
Interpretation: SGD with momentum 0.9, a learning rate of 0.001 and a weight decay of 0.0005, as in the code; for biases too.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
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
    """Factors all layers by one energy threshold, then trains with labels and distils logits and features of the original.

    soft: weight of the cross-entropy with the softened probabilities of the original
    hints: weight of the mean squared difference of the inputs of the first and the last linear layer
    temperature: divisor of the logits
    ranks: rank selection rule: knapsack, greedy, energy, minmax, uniform or evbmf
    whiten: for linear layers and 1 x 1 convolutions, minimise the error of outputs on images instead of that of the weights
    """

    paper = "Lin et al., TPAMI 2019"
    tasks = "classify"
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
            raise UsageError(f"--set temperature={temperature} must be above 0.")
        self.soft, self.hints, self.temperature = soft, hints, temperature

    def splits(self, name: str, layer: Layer) -> Sequence[Split]:
        if isinstance(layer, nn.Linear):
            return [SPLITS["linear"]]
        return [SPLITS["channel" if max(layer.kernel_size) == 1 else "separable"]]  # for a 1 x 1 kernel, both are the same

    @cached_property
    def original(self) -> nn.Module:
        """The teacher. It is not a submodule, so that it is not saved."""
        return frozen(self.job.model, next(self.model.parameters()).device)

    @cached_property
    def hinted(self) -> dict[str, str]:
        """The first and the last linear layer in execution order -> names of their hints."""
        linear = [name for name, module in self.original.named_modules() if isinstance(module, nn.Linear)]
        _, read = reads(self.original, linear, *Inputs.of(self.job.inputs).random(1, like=self.original))
        ends = read[:1] + [end for end in read[-1:] if end[1] is not read[0][1]]  # one hint per tensor
        return {name: hint for (name, _), hint in zip(ends, ("first_hint", "last_hint"), strict=False)}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        wanted, shown = self._seen(self.original, batch.inputs)
        outputs, read = self._seen(self.model, batch.inputs)
        terms = self.job.task.loss(outputs, batch)
        softened, known = (logits_of(answers).float() / self.temperature for answers in (outputs, wanted))
        terms["teacher"] = self.soft * F.cross_entropy(softened, known.softmax(1))
        for name, hint in self.hinted.items():
            errors = [F.mse_loss(ours.float(), theirs.float()) for ours, theirs in zip(read[name], shown[name], strict=True)]
            terms[hint] = self.hints * 0.5 * torch.stack(errors).sum()
        return terms

    def _seen(self, model: nn.Module, images: Tensor) -> tuple[Any, dict[str, list[Tensor]]]:
        """The output of `model`, and the inputs of its hinted layers, call by call."""
        answers, read = reads(model, list(self.hinted), images)
        return answers, {name: [x for layer, x in read if layer == name] for name in self.hinted}
