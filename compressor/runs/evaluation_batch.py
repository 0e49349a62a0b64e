"""How many images are evaluated at a time: as many as are fast, and as fit into memory with their outputs."""

from __future__ import annotations

import torch
from torch import nn

from compressor.network.inputs import Inputs
from compressor.network.meta_device import evaluating, meta_copy
from compressor.network.outputs import main_first

MOST = 250
VALUES = 2**26  # of the inputs and outputs of one batch: 256 MiB in float32


def evaluation_batch(inputs: int, outputs: int) -> int:
    """The batch size for images of so many values each, with so many values of output."""
    return max(1, min(MOST, VALUES // (inputs + outputs)))


def batch_for(model: nn.Module, inputs: Inputs) -> int:
    """The batch size for `model`, found by running one image through it: without data, if its code allows that."""
    try:
        outputs = _values(meta_copy(model), inputs)
    except Exception:  # of the network's own code
        outputs = _values(model, inputs)
    return evaluation_batch(inputs.numbers, outputs)


def _values(model: nn.Module, inputs: Inputs) -> int:
    """The number of values that `model` outputs for one image."""
    with evaluating(model), torch.inference_mode():
        return sum(output.numel() for output in main_first(inputs.call(model, inputs.random(1, like=model))))
