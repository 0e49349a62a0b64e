"""Losses that several papers on distillation use. Logits are [n, classes]; every loss is a scalar, averaged over the n rows."""

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 4.0  # that softens the answers of teacher and student
TINY = 1e-7


def softened(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """T^2 KL(teacher || student) of logits [n, classes] divided by T: gradients are of the same size at any T.

    Hinton, Vinyals, Dean, 2015, arXiv 1503.02531, section 2. The teacher's side is not detached here.
    """
    student, teacher = (F.log_softmax(logits.float() / temperature, dim=1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def standardised(logits: Tensor) -> Tensor:
    """Each row less its mean, divided by its standard deviation (of a sample).

    Sun, Ren, Li, Wang, Cao: "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv 2403.01427, algorithm 1.
    """
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + TINY)


def contrast(similarities: Tensor, targets: Tensor) -> Tensor:
    """Supervised contrast of similarities / tau [..., n, n], row by row, [..., n]: an anchor's logits over all other images.

    The mean of -log softmax over the images of the anchor's class, the image itself left out on both sides; 0 for an anchor
    that has no other of its class. Khosla et al., NeurIPS 2020, arXiv 2004.11362, equation 2.
    """
    itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    positive = (targets[:, None] == targets[None]) & ~itself  # [n, n]
    log_shares = similarities.float().masked_fill(itself, -torch.inf).log_softmax(-1).masked_fill(itself, 0.0)
    return -(log_shares * positive).sum(-1) / positive.sum(-1).clamp(min=1)
