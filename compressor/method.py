"""The contract between a paper and the training loop.

    method = SomePaper(job, ...)
    method.prepare()                          # what the paper does before training: one-shot papers cut here
    for progress in epochs:
        method.begin_epoch(progress)
        for batch in data:
            sum(method.loss(batch).values()).backward()
            method.edit_gradients()           # after unscaling, before the step
            optimizer.step()
            method.end_step(batch)
        method.end_epoch(progress)
    small = method.finish()

A paper's file overrides only the lines that the paper changes.
"""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Images [n, channels, height, width], normalised; targets [n]; indices [n] of the images in their data set."""

    images: Tensor
    targets: Tensor
    indices: Tensor
