"""A model and its images are opened together, and refused when they do not fit."""

from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.checkpoint import Loaded
from compressor.errors import DataError, UsageError
from compressor.network.inputs import Inputs
from compressor.runs.sources import Images, Opened, Source, open_both, pick_device, task_of

NET = Source("net.pt", "net.py:Net")
GREY = Inputs.of((1, 8, 8))


def test_the_input_shape_is_that_of_the_images(project: Path) -> None:
    opened = open_both(NET, Images("digits"), None)
    assert opened.data is not None and opened.inputs == Inputs.of((1, 8, 8)) and opened.notes == []
    assert open_both(NET, Images("digits", size=16), None).inputs == Inputs.of((1, 16, 16))


def test_grey_images_are_converted_for_a_network_of_three_channels(project: Path) -> None:
    source = Source("torchvision:squeezenet1_1", arch_args={"num_classes": 10})
    assert open_both(source, Images("digits", size=32), None).inputs == Inputs.of((3, 32, 32))


def test_without_images_the_shape_is_given_or_known_or_assumed_with_a_note(project: Path) -> None:
    assert open_both(NET, Images(), GREY).inputs == GREY
    known = open_both(Source("torchvision:inception_v3"), Images(), None)
    assert known.inputs == Inputs.of((3, 299, 299))
    assert known.notes == ["the weights are random: torchvision:inception_v3 is an architecture without weights"]
    assumed = open_both(NET, Images(), None)
    assert assumed.inputs == Inputs.of((1, 224, 224))
    assert assumed.notes == ["images are assumed to be 1x224x224: give --input or --data if they are not"]


def test_a_shape_that_the_images_do_not_have_is_refused(project: Path) -> None:
    with pytest.raises(UsageError, match=r"--input 1x9x9 does not fit digits, whose images are 1x8x8: .* give --size"):
        open_both(NET, Images("digits"), Inputs.of((1, 9, 9)))


NAMED = """
from net import Net


class Named(Net):
    def forward(self, pixel_values, mask=None):
        return {"logits": super().forward(pixel_values)}
"""


def test_images_go_to_the_input_that_is_named_if_it_is_the_first(project: Path) -> None:
    (project / "named.py").write_text(NAMED)
    source = Source("net.pt", "named.py:Named")
    by_name = Inputs.of({"pixel_values": (1, 8, 8)})
    opened = open_both(source, Images("digits"), by_name)
    assert opened.inputs == by_name
    assert task_of(opened, Images("digits"), torch.device("cpu")).name == "classify"
    with pytest.raises(UsageError, match=r"--input mask=1x1x8x8: .* passed as the first argument, .* calls pixel_values"):
        open_both(source, Images("digits"), Inputs.of({"mask": (1, 8, 8)}))


def test_images_alone_are_not_enough_for_several_inputs(project: Path) -> None:
    with pytest.raises(UsageError, match=r"takes inputs of 1x8x8, 1x8x8, but digits has only images: omit --data\. "):
        open_both(NET, Images("digits"), Inputs.of([(1, 8, 8), (1, 8, 8)]))


def test_a_network_for_other_classes_is_refused(project: Path) -> None:
    data, cpu = Images("digits").open(1, seed=0), torch.device("cpu")
    wrong = Loaded(nn.Sequential(nn.Flatten(), nn.Linear(64, 12)), "net.pt", "net.py:Net", {}, None, [])
    with pytest.raises(DataError, match="has 12 classes, but digits has 10"):
        task_of(Opened(wrong, data, Inputs.of((1, 8, 8)), []), Images("digits"), cpu)
    assert task_of(Opened(wrong, None, Inputs.of((1, 8, 8)), []), Images(), cpu).name == "classify"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("segment", "--task segment needs masks as targets, but digits has classes"),
        ("clasify", r"--task clasify is not one of classify, segment, restore, imitate; did you mean 'classify'\?"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(project: Path, asked: str, told: str) -> None:
    opened = open_both(NET, Images("digits"), None)
    with pytest.raises(UsageError, match=told):
        task_of(opened, Images("digits", task=asked), torch.device("cpu"))


def test_a_classifier_may_imitate_itself(project: Path) -> None:
    opened = open_both(NET, Images("digits"), None)
    assert task_of(opened, Images("digits", task="imitate"), torch.device("cpu")).name == "imitate"


def test_the_device_is_the_gpu_if_there_is_one() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta", ""])
def test_a_device_that_is_not_available_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"--device {name}"):
        pick_device(name)
