"""The network as it is masked: of the same shapes as the original, with zeros for the channels that are cut.

Which channels stay is a `Mask` (groups.py), one truth value for each channel of each group. A cut network is proved equal to
the masked one (verify.py).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from compressor.channels.surgery import Cut, remake, typed


def mask(model: nn.Module, cut: Cut, dtype: torch.dtype | None = None) -> nn.Module:
    """The large model with zeros wherever `cut` takes something away; in `dtype`, if one is given."""

    def zero(name: str, tensor: Tensor) -> Tensor:
        tensor = typed(tensor, dtype)
        for dim, places in cut.kept.get(name, {}).items():
            gone = np.setdiff1d(np.arange(tensor.shape[dim]), places)
            tensor.index_fill_(dim, torch.from_numpy(gone).to(tensor.device), 0)
        return tensor

    return remake(model, zero)
