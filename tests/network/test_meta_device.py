"""The copy without data has the same shapes, types and shared tensors."""

import torch
from torch import Tensor, nn

from compressor.network.meta_device import meta_copy


class Tied(nn.Module):
    """One weight under two names, a frozen layer, and tensors in all the usual places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("scale", torch.ones(4), persistent=False)
        self.plain = torch.ones(4, dtype=torch.float64)
        self.nested = {"shifts": [torch.ones(4)]}
        self.hidden = [nn.Linear(4, 4)]  # PyTorch does not find it in a list

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(self.second(self.first(x)) * self.scale + self.plain.float())
        return self.hidden[0](x + self.nested["shifts"][0])


def test_runs_without_data_in_the_same_shape() -> None:
    assert meta_copy(Tied())(torch.empty(2, 4, device="meta")).shape == (2, 4)


def test_leaves_the_original_alone() -> None:
    model = Tied()
    before = model(torch.ones(1, 4))
    meta_copy(model)
    assert torch.equal(model(torch.ones(1, 4)), before)
    assert not any(p.is_meta for p in model.parameters())


def test_keeps_ties_flags_types_and_classes() -> None:
    twin = meta_copy(Tied())
    assert twin.first.weight is twin.second.weight
    assert isinstance(twin.first.weight, nn.Parameter) and twin.first.weight.requires_grad
    assert not twin.frozen.weight.requires_grad
    assert twin.plain.dtype == torch.float64
    assert twin.scale.is_meta and "scale" not in twin.state_dict()
    assert twin.hidden[0].weight.is_meta and twin.nested["shifts"][0].is_meta


def test_keeps_hooks_and_what_they_call() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].add_module("after", nn.Linear(4, 3))
    model[0].register_forward_hook(lambda module, args, output: module.get_submodule("after")(output))
    model[1] = nn.Linear(3, 2)
    assert meta_copy(model)(torch.empty(1, 4, device="meta")).shape == (1, 2)


def test_copies_what_an_ordinary_copy_cannot() -> None:
    model = nn.Linear(4, 4)
    model.derived = model.weight * 2  # not a leaf, which deepcopy refuses
    assert meta_copy(model).derived.is_meta
