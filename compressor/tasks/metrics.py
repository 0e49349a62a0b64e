"""Accuracy of a network, and agreement between two networks.

Accuracy comes with Wilson's interval, because ten thousand images cannot distinguish 91.2 % from 91.4 %. Accuracies are
fractions between 0 and 1.
"""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor

from compressor.data import Batch
from compressor.errors import DataError, VerificationFailed
from compressor.network.outputs import Predict
from compressor.report.schema import Accuracy, Fidelity


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of the share `correct` / `n`."""
    from scipy.stats import binomtest  # takes a second to import

    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def accuracy(predict: Predict, batches: Iterable[Batch]) -> Accuracy:
    """Top-1, top-5 (with ten or more classes) and mean cross-entropy over the images of all batches.

    Raises DataError if there are no images or a label is not a class of the network, and VerificationFailed if the network
    outputs NaN.
    """
    n, top1, top5, loss, classes = 0, 0, 0, 0.0, 0
    for batch in batches:
        logits = predict(batch.inputs)  # [n, classes]
        targets = batch.targets.to(logits.device)  # [n]
        classes = logits.shape[1]
        _check_answers(logits, targets)
        hits = logits.topk(min(5, classes)).indices == targets[:, None]  # [n, 5]
        n += len(targets)
        top1 += int(hits[:, 0].sum())
        top5 += int(hits.sum())
        loss += float(F.cross_entropy(logits, targets, reduction="sum"))
    _check_images(n)
    return Accuracy(top1 / n, *wilson(top1, n), n, top5=top5 / n if classes >= 10 else None, loss=loss / n)


def fidelity(original: Predict, compressed: Predict, batches: Iterable[Batch], inputs: str) -> Fidelity:
    """Agreement of `compressed` with `original` on the images of all batches; `inputs` names these images."""
    n, equal, divergence = 0, 0, 0.0
    for batch in batches:
        before, after = original(batch.inputs).cpu(), compressed(batch.inputs).cpu()  # [n, classes]
        n += len(before)
        equal += int((before.argmax(1) == after.argmax(1)).sum())
        divergence += float(F.kl_div(after.log_softmax(1), before.log_softmax(1), log_target=True, reduction="sum"))
    _check_images(n)
    return Fidelity(equal / n, max(divergence / n, 0.0), n, inputs)  # rounding can leave a sum just below zero


def _check_images(n: int) -> None:
    if n == 0:
        raise DataError("There are no images to evaluate the network on: check the test data.")


def _check_answers(logits: Tensor, targets: Tensor) -> None:
    if logits.isnan().any():
        raise VerificationFailed("The network outputs NaN: its weights are corrupt, or the training diverged.")
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise DataError(
            f"The network has the classes 0 to {logits.shape[1] - 1}, but the labels range from {int(targets.min())} to "
            f"{int(targets.max())}: use the data that it was trained on."
        )
