"""Layer inputs in the order of the calls, the split before the trained layers, and the cache of the frozen part."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy import SHAPE, Wide, batches

from compressor.methods.output_cache import Remembered, halves, reads

IMAGE = 8 * 4  # bytes of a row of eight numbers


class Embedded(nn.Module):
    """[n, 3, 12, 12] -> [n, 5], with position embeddings, which the frozen and the trained part both use."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8)
        self.table = nn.Parameter(torch.randn(9, 8), requires_grad=False)
        self.trained = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.embed(x)).flatten(2).mT + self.table  # [n, 9, 8]
        return self.trained((tokens * self.table).mean(1)) + tokens.mean((1, 2)).unsqueeze(1)


class Branching(Wide):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class InPlace(nn.Module):
    """The output of the frozen part is modified in place after the trained part has used it."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.trained = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(x)
        y = self.trained(x)
        x.add_(1)
        return y + x.sin()


def fully_connected_alone(model: nn.Module) -> nn.Module:
    """`model`, with gradients for linear layers only."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.requires_grad_(True)
    return model.eval()


def test_what_layers_read_comes_in_the_order_of_their_calls() -> None:
    model = Wide().eval()
    (batch,) = batches(1)
    answers, read = reads(model, ["head", "fc1", "conv"], batch.inputs)
    assert [name for name, _ in read] == ["conv", "fc1", "head"]
    assert torch.equal(model.head(read[-1][1]), answers) and torch.equal(model(batch.inputs), answers)
    assert not any(module._forward_pre_hooks for module in model.modules()), "all hooks are removed"


def test_both_halves_together_are_the_model_and_go_on_being_it() -> None:
    (batch,) = batches(1)
    for model in (fully_connected_alone(Wide()), fully_connected_alone(Embedded())):
        first, then = halves(model, SHAPE) or ()
        known = first(batch.inputs)
        torch.testing.assert_close(then(*known), model(batch.inputs))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * parameter.requires_grad
        torch.testing.assert_close(then(*known), model(batch.inputs))
        then(*known).sum().backward()
        assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


def test_there_is_but_one_half_where_a_model_cannot_be_cut() -> None:
    assert halves(fully_connected_alone(Branching()), SHAPE) is None
    assert halves(Wide().eval(), SHAPE) is None, "its first layer is trained"
    assert halves(InPlace(), (3,)) is None


def test_each_image_is_looked_at_once() -> None:
    asked: list[int] = []

    def twice(images: Tensor) -> list[Tensor]:
        asked.append(len(images))
        return [F.adaptive_avg_pool2d(images, 2)[:, :2].flatten(1), images.mean((1, 2, 3))]

    (one, two, three) = batches(3)
    known = Remembered(twice, 2 * 8 * (IMAGE + 4))  # room for two of the batches
    mixed = one._replace(
        inputs=torch.cat([one.inputs[:4], two.inputs[:4]]), indices=torch.cat([one.indices[:4], two.indices[:4]])
    )
    for batch in (one, mixed, two, three, three, one):
        for given, wanted in zip(known(batch), twice(batch.inputs), strict=True):
            torch.testing.assert_close(given, wanted)
        asked.pop()
    assert asked == [1, 2, 8, 4, 4, 8, 8], "one image and two to begin with; the third batch does not fit"


def test_nothing_is_kept_that_has_no_row_for_each_image() -> None:
    (batch,) = batches(1)
    for function in (lambda images: [images.flatten(0, 1)], lambda images: [images, 3]):
        known = Remembered(function, 1e9)
        assert len(known(batch)[0]) == len(function(batch.inputs)[0]) and not known.rows
