"""Soft filter pruning: the number and choice of pruned filters, and that the pruned network equals the masked one."""

import pytest
import torch
from resnet import resnet20  # found through the line above
from torch import Tensor, nn
from toy import SHAPE, Toy, batches, job, optimizer, train

from compressor.methods.prune.papers.sfp import SFP
from compressor.training.method import Job, Progress

END = Progress(0, 2)


def four_filters() -> nn.Sequential:
    """Four filters of norms 1, 2, 3 and 4, a batch norm of scale 1 and shift 5, and a layer that consumes them."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2.0, 3.0, -4.0]).view(4, 1, 1, 1))
        model[1].bias.fill_(5.0)
    return model


def half(**settings: bool) -> SFP:
    method = SFP(job("filters=50%", four_filters(), (1, 4, 4)), **settings)
    method.prepare()
    return method


def shifted(mask_norms: bool) -> SFP:
    """A prepared method whose network has positive shifts, as trained networks do."""
    model = Toy()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.5)
    method = SFP(job("filters=40%", model), mask_norms=mask_norms)
    method.prepare()
    return method


def filters(method: SFP) -> list[float]:
    return method.model[0].weight.flatten().tolist()


# Filter counts ----------------------------------------------------------------------------------------------------------

KEPT = (90, 80, 70, 60, 50, 40, 30)  # per cent
GONE = {  # width of a layer -> number of pruned filters for each of KEPT
    16: (1, 3, 4, 6, 8, 9, 11),
    20: (2, 4, 6, 8, 10, 12, 14),  # 20 * (1 - 0.9) is 1.9999999999999996 in floating point
    32: (3, 6, 9, 12, 16, 19, 22),
    64: (6, 12, 19, 25, 32, 38, 44),
    128: (12, 25, 38, 51, 64, 76, 89),
    256: (25, 51, 76, 102, 128, 153, 179),
    512: (51, 102, 153, 204, 256, 307, 358),
    1024: (102, 204, 307, 409, 512, 614, 716),
    2048: (204, 409, 614, 819, 1024, 1228, 1433),
}


class Beside(nn.Module):
    """Parallel layers of many widths."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(1, width, 1), nn.Conv2d(width, 1, 1)) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.layers], 1)


def test_each_layer_gives_its_share_rounded_down() -> None:
    model = Beside(list(GONE))
    for column, kept in enumerate(KEPT):
        counts = SFP(job(f"filters={100 - kept}%", model, (1, 2, 2))).counts
        assert counts.tolist() == [gone[column] for gone in GONE.values()]


def resnet_job(residual: str) -> Job:
    return job("filters=40%", resnet20(), (3, 32, 32), residual)


def test_every_convolution_of_a_resnet_gives_its_share_when_scattered() -> None:
    """6 of 16, 12 of 32 and 25 of 64 filters are pruned.

    The papers count 51.7 % of the multiply-adds with whole filters: there, the first block consumes the filters of the stem
    before they are scattered into the residual stream. Here it consumes the residual stream, like every block.
    """
    task = resnet_job("scatter")
    method = SFP(task)
    method.prepare()
    gone = {group.name: count for group, count in zip(task.channels.groups, method.counts, strict=True)}
    widths = {name: m.out_channels for name, m in task.model.named_modules() if isinstance(m, nn.Conv2d)}
    assert gone == {name: {16: 6, 32: 12, 64: 25}[width] for name, width in widths.items()}
    method.finish()
    full, kept = (task.channels.macs.total(mask) for mask in (task.channels.all_kept(), method.removed.mask))
    assert round(100 * (1 - kept / full), 1) == 50.3
    first_block_would_save = 32 * 32 * 9 * 6 * 10
    assert round(100 * (1 - (kept - first_block_would_save) / full), 1) == 51.7


def test_a_stream_is_one_layer_when_coupled() -> None:
    task = resnet_job("coupled")
    method = SFP(task)
    assert method.counts.tolist() == [int(group.size * 0.4) for group in task.channels.groups]
    assert len(method.counts) == 1 + 9  # the residual stream and the inside of each block; channels added to padding are frozen


def test_a_budget_of_macs_becomes_one_rate_for_all_layers() -> None:
    task = job("macs=50%", round_to=1)
    counts = SFP(task).counts
    rates = [count / group.size for count, group in zip(counts, task.channels.groups, strict=True)]
    assert max(rates) - min(rates) <= 1 / 8  # layers of 8 filters are rounded one by one
    assert 0.2 < sum(rates) / len(rates) < 0.4


# Selection and masking ---------------------------------------------------------------------------------------------------


def test_the_filters_of_smallest_norm_are_zero_from_the_start() -> None:
    method = half()
    assert method.weak.tolist() == [True, True, False, False]
    assert filters(method) == [0, 0, 3, -4]


def test_a_filter_that_grew_enters_again() -> None:
    method = half()
    with torch.no_grad():
        method.model[0].weight[0] = 10.0
    method.end_epoch(END)
    assert method.weak.tolist() == [False, True, True, False]
    assert filters(method) == [10, 0, 0, -4]


def test_equal_filters_go_in_order() -> None:
    method = half()
    with torch.no_grad():
        method.model[0].weight.fill_(1.0)
    method.end_epoch(END)
    assert method.weak.tolist() == [True, True, False, False]


def test_the_norm_behind_a_zeroed_filter_is_zero_too() -> None:
    norm = half().model[1]
    assert norm.weight.tolist() == [0, 0, 1, 1]
    assert norm.bias.tolist() == [0, 0, 5, 5]


def test_unless_the_paper_is_followed_to_the_letter() -> None:
    norm = half(mask_norms=False).model[1]
    assert norm.weight.tolist() == [1, 1, 1, 1]
    assert norm.bias.tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize("mask_norms", [True, False])
def test_zeroed_filters_get_gradients_unless_their_norm_is_zero(mask_norms: bool) -> None:
    """The gradient of a ReLU after a zeroed norm is zero: the filter recovers only by momentum."""
    method = shifted(mask_norms)
    (batch,) = batches(1)
    method.loss(batch)["cross_entropy"].backward()
    weak = dict(
        zip((group.name for group in method.channels.groups), method.channels.split(method.weak.numpy()).values(), strict=True)
    )
    inside = method.model.stages[1].conv1.weight  # followed by a norm and a ReLU
    moved = inside.grad.abs().sum((1, 2, 3))[torch.from_numpy(weak["stages.1.conv1"])] > 0
    assert moved.any() != mask_norms


def test_weights_outside_the_weak_filters_stay_as_they_are() -> None:
    toy = Toy()
    method = SFP(job("filters=40%", toy))
    method.prepare()
    before, weak = dict(toy.named_parameters()), method.weak.numpy()
    for place in method.channels.places:
        if place.tensor in before and place.role == "out" and place.dim == 0:
            gone = torch.from_numpy(weak[place.atoms])
            after = method.model.get_parameter(place.tensor)
            assert torch.equal(after[~gone], before[place.tensor][~gone])
            assert not after[gone].any()
    assert torch.equal(method.model.head.weight, toy.head.weight)  # the consumers of weak channels are not changed


# Training and final removal -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", ["coupled", "scatter"])
def test_the_small_network_is_the_masked_one_after_training(residual: str) -> None:
    method = SFP(job("filters=40%", residual=residual))
    method.prepare()
    train(method, optimizer(method), range(3), 3)
    images = torch.randn(4, *SHAPE)
    masked = method.model.eval().double()(images.double())
    small = method.finish().double()(images.double())
    assert method.removed is not None and not method.removed.mask.all()
    assert torch.allclose(small, masked, rtol=0, atol=1e-12 * float(masked.detach().abs().max()))


def test_between_epochs_zeroed_filters_train_like_the_others() -> None:
    method = shifted(mask_norms=False)
    sgd = optimizer(method)
    method.train()
    (batch,) = batches(1)
    method.loss(batch)["cross_entropy"].backward()
    convolutions = [module for module in method.model.stages.modules() if isinstance(module, nn.Conv2d)]
    assert [dead(module) for module in convolutions] == [3, 3, 3] + [6] * 6
    sgd.step()
    assert not any(dead(module) for module in convolutions)


def dead(convolution: nn.Conv2d) -> int:
    return int((convolution.weight == 0).flatten(1).all(1).sum())
