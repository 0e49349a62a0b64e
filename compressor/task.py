"""What the network is for: its loss. Classification so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from compressor.outputs import main_first

AUXILIARY = 0.3  # weight of auxiliary classifiers' losses: Szegedy et al., CVPR 2015, section 5


@dataclass(frozen=True)
class Classify:
    """Cross-entropy, with the weight of auxiliary classifiers of networks that have them."""

    label_smoothing: float = 0.0

    def loss(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        """Named, weighted scalar terms. `outputs`: logits [n, classes], or a tuple or mapping that holds them.

        Further tensors of the same shape are the auxiliary classifiers' logits (googlenet, inception).
        """
        logits, *others = main_first(outputs)
        all_logits = [logits, *(tensor for tensor in others if tensor.shape == logits.shape)]
        main, *auxiliary = (F.cross_entropy(o.float(), targets, label_smoothing=self.label_smoothing) for o in all_logits)
        terms = {"cross_entropy": main}
        if auxiliary:
            terms["auxiliary"] = AUXILIARY * sum(auxiliary[1:], auxiliary[0])
        return terms
