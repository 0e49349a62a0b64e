"""Unusual parts of vision networks: the channels around them are pruned, and they are frozen where necessary."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from random_cuts import EXACT, at_random, liven
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

from compressor.channels import Verified, analyse, remove
from compressor.network.cost import weight_bytes
from compressor.network.inputs import Input, Inputs


def cut(model: nn.Module, *inputs: str) -> Verified:
    asked = Inputs.of([(3, 8, 8)]) if not inputs else Inputs(tuple(map(Input.parse, inputs)))
    verified = remove(model, analyse(model, asked), at_random(), asked)
    assert not verified.channels.held
    assert verified.difference <= EXACT
    return verified


def between(part: nn.Module, last: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), part, nn.Conv2d(last, 5, 1))


class Flattened(nn.Module):
    """`part` on the flattened positions of an image, or on a stack of four images."""

    def __init__(self, part: nn.Module, stack: bool = False) -> None:
        super().__init__()
        self.part, self.stack = part, stack

    def forward(self, x: Tensor) -> Tensor:
        return (
            self.part(x[:, :, None].expand(-1, -1, 4, -1, -1)).mean(2) if self.stack else self.part(x.flatten(2)).unsqueeze(3)
        )


class Scaled(nn.Module):
    """A bare parameter for each channel, and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.token = nn.Parameter(torch.ones(8, 1, 1)), nn.Parameter(torch.zeros(1, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), (x * self.gamma).flatten(2)], 2)
        return tokens[:, :, None] * tokens[:, :, None, :1]


@pytest.mark.parametrize(
    ("part", "groups"),
    [
        (lambda: nn.ConvTranspose2d(8, 8, 3), 2),
        (lambda: Flattened(nn.Conv1d(8, 8, 3)), 2),
        (lambda: Flattened(nn.Conv3d(8, 8, 3, padding=1), stack=True), 2),
        (lambda: Flattened(nn.ConvTranspose1d(8, 8, 3)), 2),
        (lambda: nn.GroupNorm(2, 8), 1),
        (lambda: nn.InstanceNorm2d(8, affine=True), 1),
        (lambda: nn.PReLU(8), 1),
        (lambda: nn.PReLU(), 1),
        (lambda: FrozenBatchNorm2d(8), 1),
        (Scaled, 1),
        (lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 3)), 2),
        (lambda: nn.utils.weight_norm(nn.Conv2d(8, 8, 3)), 2),
        (lambda: nn.Conv2d(8, 8, 3).requires_grad_(False), 2),
        (lambda: nn.LocalResponseNorm(3), 0),
    ],
    ids="transposed 1d 3d transposed1d group instance prelu prelu1 frozen bare parametrized hooked fixed response".split(),
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_half_goes_from_beside(part: Callable[[], nn.Module], groups: int) -> None:
    model = liven(between(part()))
    if groups == 0:
        assert not analyse(model, (3, 8, 8)).groups
        return
    verified = cut(model)
    assert len(verified.channels.groups) == groups
    assert verified.model[0].out_channels == 4
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert [name for name, p in verified.model.named_parameters() if not p.requires_grad] == frozen


class Recurrent(nn.Module):
    """Takes the rows of an image as a sequence."""

    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.rows, self.head = cell(32, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        return self.head(self.rows(x.permute(0, 2, 1, 3).flatten(2))[0][:, -1])


@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
def test_what_a_recurrent_layer_reads_can_go(cell: type[nn.RNNBase]) -> None:
    """Its hidden state keeps its width."""
    verified = cut(liven(Recurrent(cell)))
    assert [group.name for group in verified.channels.groups] == ["first", "second"]
    assert (verified.model.rows.input_size, verified.model.rows.hidden_size) == (16, 16)


class Words(nn.Module):
    """An image and a sentence: the word embedding is as wide as the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.words = nn.Conv2d(3, 8, 3), nn.Embedding(10, 8)
        self.mix, self.head = nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, images: Tensor, *, words: Tensor) -> dict[str, Tensor]:
        x = self.image(images).mean((2, 3)) + self.words(words).mean(1)
        return {"logits": self.head(F.gelu(self.mix(x))), "features": x.mean(1)}


def test_a_table_of_words_goes_with_the_stream() -> None:
    verified = cut(liven(Words()), "3x8x8", "words=1x6:int64")
    assert {group.name: group.size for group in verified.channels.groups} == {"mix": 12}
    assert verified.model.words.weight.shape == (10, 8)  # `features` averages over the stream


def test_the_analysis_takes_little_memory() -> None:
    """The analysis uses less than half of the model's size: memory of Python and NumPy, since `meta` has none."""
    import tracemalloc

    from torchvision.models import resnet50

    model = resnet50().eval()
    tracemalloc.start()
    analyse(model, (3, 224, 224))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * weight_bytes(model)
