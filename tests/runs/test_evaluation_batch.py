"""The batch of an evaluation fits into memory."""

import pytest
from small import make_net
from torch import Tensor, nn

from compressor.network.inputs import Inputs
from compressor.runs.evaluation_batch import batch_for, evaluation_batch


@pytest.mark.parametrize(
    ("inputs", "outputs", "images"),
    [
        (1 * 8 * 8, 10, 250),
        (3 * 224 * 224, 1000, 250),
        (3 * 360 * 480, 12 * 360 * 480, 25),  # maps of 12 classes: 250 of them would take 2 GB
        (3 * 1024 * 2048, 19 * 1024 * 2048, 1),
        (2**27, 1, 1),  # never none
    ],
)
def test_it_is_bounded_by_the_values_of_a_batch(inputs: int, outputs: int, images: int) -> None:
    assert evaluation_batch(inputs, outputs) == images


def test_all_outputs_of_the_network_count() -> None:
    class Maps(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.repeat(1, 30, 1, 1), x.repeat(1, 30, 1, 1)

    assert batch_for(make_net(), Inputs.of((1, 8, 8))) == 250
    assert batch_for(Maps(), Inputs.of((1, 256, 512))) == 2**26 // (61 * 256 * 512) == 8
