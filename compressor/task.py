"""What the network is for: its loss. Classification so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

AUXILIARY = 0.3  # weight of auxiliary classifiers' losses: Szegedy et al., CVPR 2015, section 5


def logits_of(outputs: Tensor | tuple[Tensor | None, ...] | Mapping[str, Tensor]) -> Tensor:
    """The main classifier's [n, classes] among what a network returned: the tensor, or the first of a tuple or mapping."""
    if isinstance(outputs, Tensor):
        return outputs
    first = next(iter(outputs.values())) if isinstance(outputs, Mapping) else outputs[0]
    assert isinstance(first, Tensor)
    return first


@dataclass(frozen=True)
class Classify:
    """Cross-entropy, with the weight of auxiliary classifiers of networks that have them."""

    label_smoothing: float = 0.0

    def loss(self, outputs: Tensor | tuple[Tensor | None, ...], targets: Tensor) -> dict[str, Tensor]:
        """Named, weighted scalar terms. `outputs`: logits [n, classes], or a tuple of logits (googlenet, inception)."""
        all_logits = [outputs] if isinstance(outputs, Tensor) else [o for o in outputs if isinstance(o, Tensor)]
        main, *auxiliary = (F.cross_entropy(o.float(), targets, label_smoothing=self.label_smoothing) for o in all_logits)
        terms = {"cross_entropy": main}
        if auxiliary:
            terms["auxiliary"] = AUXILIARY * sum(auxiliary[1:], auxiliary[0])
        return terms
