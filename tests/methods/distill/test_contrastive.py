"""Contrastive losses of two networks on four images, worked out by hand, and unrolled steps of SGD."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.methods.distill.contrastive import Matcher, Projector, contrasts, matched, unrolled

LN2, LN5, TWO_OF_5 = math.log(2), math.log(5), math.log(5 / 2)
TARGETS = torch.tensor([0, 0, 1, 1])
ONE, OTHER = torch.eye(2)[[0, 0, 1, 1]], torch.eye(2)[[0, 1, 0, 1]]  # only the first network separates the classes


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_four_losses_by_hand(temperature: float) -> None:
    """With this tau, exp(similarity) after softening is 2 for equal embeddings and 1 for others."""
    tau = 1 / temperature / LN2
    rows = {name: row() for name, row in contrasts([ONE, OTHER], TARGETS, [(0, 1), (1, 0)], tau, temperature).items()}
    assert list(rows) == ["vcl", "soft_vcl", "icl", "soft_icl"]
    # The first image's row is (2, 2, 1, 1) / 6 in the one network and (2, 1, 2, 1) / 6 in the other.
    soft = torch.full((2, 4), temperature**2 * LN2 / 6)
    torch.testing.assert_close(rows["soft_vcl"], soft)
    torch.testing.assert_close(rows["soft_icl"], soft)
    if temperature == 1:
        # Over the other three images, exp(similarity) is 2 for equal embeddings: the positive has probability 2/4, or 1/4.
        torch.testing.assert_close(rows["vcl"], torch.tensor([[LN2] * 4, [2 * LN2] * 4]))
        found_in_other = [2 * LN2, TWO_OF_5, TWO_OF_5, 2 * LN2]
        found_in_one = [LN2, LN5, LN5, LN2]
        torch.testing.assert_close(rows["icl"], torch.tensor([found_in_other, found_in_one]))


def test_a_row_is_matched_to_a_target_that_weighs() -> None:
    """Target 3/4 and 1/4, row 1/2 and 1/2, at T = 2: 4 (3/4 ln 3/2 + 1/4 ln 1/2)."""
    found = matched(torch.zeros(2, 2), torch.tensor([[2 * math.log(3), 0.0]] * 2), 2.0)
    assert found.tolist() == pytest.approx([4 * (0.75 * math.log(1.5) - 0.25 * LN2)] * 2)


@pytest.mark.parametrize(("name", "wanted"), [("vcl", [1, 0]), ("soft_vcl", [1, 0]), ("icl", [1, 1]), ("soft_icl", [1, 1])])
def test_the_target_stands_still(name: str, wanted: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    both = [F.normalize(torch.randn(4, 3, generator=generator)).requires_grad_() for _ in range(2)]
    contrasts(both, TARGETS, [(0, 1)], 0.5, 3.0)[name]().sum().backward()
    assert [e.grad is not None and int(e.grad.abs().sum() > 0) for e in both] == wanted


def test_embeddings_have_length_1_in_full_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        embedding = Projector(6)(torch.randn(5, 6))
        (rows,) = contrasts([embedding], torch.arange(5), [(0, 0)], 0.1, 3.0)["soft_vcl"]()
    assert embedding.shape == (5, 128) and embedding.dtype == rows.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(5))


def test_layers_that_point_the_same_way_have_most_to_tell() -> None:
    matcher = Matcher(2, 2)
    for layer in matcher.layers:
        layer.weight.data.zero_()[:2], layer.bias.data.zero_()
        layer.weight.data[:2] = torch.eye(2)
    shares = matcher([torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[5.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])])
    assert shares.shape == (2, 2, 3)
    assert shares[0, 1].tolist() == shares[1, 0].tolist() == pytest.approx([1 / (1 + math.exp(-c)) for c in (1, 0, -1)])


# Unrolled steps -------------------------------------------------------------------------------------------------------


def start() -> dict[str, Tensor]:
    return {
        "v": torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True),
        "u": torch.tensor([[-1.0], [0.5]], dtype=torch.float64, requires_grad=True),
    }


def inner(now: dict[str, Tensor], omega: Tensor) -> Tensor:
    return (now["v"] ** 4).mean() + (omega * now["u"].T.cos()).sum() * now["v"][0]


def outer(now: dict[str, Tensor]) -> Tensor:
    return (now["v"] @ now["u"]).exp().sum()


OMEGA = torch.tensor([[0.3, -0.7], [1.1, 0.2]], dtype=torch.float64)


def test_steps_that_are_tried_are_those_of_torch() -> None:
    found = unrolled(start(), [lambda now: inner(now, OMEGA)] * 2 + [outer], rate=0.05, momentum=0.9, decay=0.01)
    now = start()
    sgd = torch.optim.SGD(now.values(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for loss in (lambda: inner(now, OMEGA), lambda: inner(now, OMEGA), lambda: outer(now)):
        sgd.zero_grad()
        loss().backward()
        sgd.step()
    assert all(torch.allclose(found[name], now[name], rtol=1e-12) for name in now)


def test_the_way_back_through_them_agrees_with_finite_differences() -> None:
    def after(omega: Tensor) -> Tensor:
        return outer(unrolled(start(), [lambda now: inner(now, omega)] * 2 + [outer], rate=0.05))

    assert torch.autograd.gradcheck(after, OMEGA.clone().requires_grad_())


def test_what_a_loss_does_not_use_only_decays() -> None:
    found = unrolled(start(), [lambda now: now["v"].sum()], rate=0.5, decay=0.1)
    assert found["u"].flatten().tolist() == pytest.approx([-0.95, 0.475])
