"""The masked network: the original's shapes, with zeros in place of the pruned channels.

A `Mask` (groups.py) has one boolean for each channel of each group, True = kept. The pruned network is verified against the
masked one (verify.py).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from compressor.channels.surgery import Cut, remake, typed


def mask(model: nn.Module, cut: Cut, dtype: torch.dtype | None = None) -> nn.Module:
    """The original model with zeros wherever `cut` removes something; in `dtype`, if given."""

    def zero(name: str, tensor: Tensor) -> Tensor:
        tensor = typed(tensor, dtype)
        for dim, places in cut.kept.get(name, {}).items():
            gone = np.setdiff1d(np.arange(tensor.shape[dim]), places)
            tensor.index_fill_(dim, torch.from_numpy(gone).to(tensor.device), 0)
        return tensor

    return remake(model, zero)
