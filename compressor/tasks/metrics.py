"""How good the answers of a network are, and how close those of two networks.

Accuracy comes with Wilson's interval, because ten thousand images do not tell 91.2 % from 91.4 %. Accuracies are fractions
between 0 and 1.
"""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor

from compressor.data import Batch
from compressor.errors import DataError, VerificationFailed
from compressor.network.outputs import Predict
from compressor.report.schema import Accuracy, Fidelity


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share that was estimated as `correct` of `n`."""
    from scipy.stats import binomtest  # takes a second to import

    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def accuracy(predict: Predict, batches: Iterable[Batch]) -> Accuracy:
    """Top-1, top-5 (from ten classes on) and mean cross-entropy over the images of all batches.

    Raises DataError when there are no images or a label is none of the network's classes, and VerificationFailed when
    the network answers NaN.
    """
    n, top1, top5, loss, classes = 0, 0, 0, 0.0, 0
    for batch in batches:
        logits = predict(batch.images)  # [n, classes]
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
    """How close `compressed` answers to `original` on the images of all batches; `inputs` says what these are."""
    n, equal, divergence = 0, 0, 0.0
    for batch in batches:
        before, after = original(batch.images).cpu(), compressed(batch.images).cpu()  # [n, classes]
        n += len(before)
        equal += int((before.argmax(1) == after.argmax(1)).sum())
        divergence += float(F.kl_div(after.log_softmax(1), before.log_softmax(1), log_target=True, reduction="sum"))
    _check_images(n)
    return Fidelity(equal / n, max(divergence / n, 0.0), n, inputs)  # rounding can leave a sum just below zero


def _check_images(n: int) -> None:
    if n == 0:
        raise DataError("The networks' answers were to be compared, but there are no images: check the test data.")


def _check_answers(logits: Tensor, targets: Tensor) -> None:
    if logits.isnan().any():
        raise VerificationFailed("The network answers NaN: its weights are broken, or the training diverged.")
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise DataError(
            f"The network knows the classes 0 to {logits.shape[1] - 1}, but the labels go from {int(targets.min())} to "
            f"{int(targets.max())}: give the data it was trained for."
        )
