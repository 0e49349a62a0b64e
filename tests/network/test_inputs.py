"""The inputs of a network: all forms of shapes, samples, and how they are passed to `forward`."""

import pytest
import torch
from torch import Tensor, nn

from compressor.channels import analyse, remove
from compressor.errors import UsageError
from compressor.network.inputs import Input, Inputs


class Meeting(nn.Module):
    """Two images, token ids and a mask; the output is a dict in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.words = nn.Embedding(2, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor, other: Tensor, *, ids: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], None]:
        seen = (self.left(image) + self.right(other)).relu().mean((2, 3))
        told = (self.words(ids) * mask[:, :, None]).mean(1)
        return {"out": self.head(seen) + told.sum(1, keepdim=True)}, None


MEETING = Inputs((Input((3, 8, 8)), Input((3, 8, 8)), Input((4,), "ids", "int64"), Input((4,), "mask", "bool")))


def test_shapes_in_every_form() -> None:
    assert Inputs.of((3, 8, 8)).each == (Input((3, 8, 8)),)
    assert Inputs.of([(3, 8, 8), [1, 4]]).each == (Input((3, 8, 8)), Input((1, 4)))
    assert Inputs.of({"pixel_values": (3, 8, 8)}).each == (Input((3, 8, 8), "pixel_values"),)
    assert Inputs.of(MEETING) is MEETING


@pytest.mark.parametrize("wrong", [(), (3, 0, 8), (3, -1, 8), [(3, 8, 8), ()]])
def test_what_is_no_shape_is_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="is not an input shape"):
        Inputs.of(wrong)


def test_a_type_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match="'int7' is not an input type"):
        Input((3,), dtype="int7")


@pytest.mark.parametrize(
    ("text", "entry", "again"),
    [
        ("3x224x224", Input((3, 224, 224)), None),
        ("1X8x8", Input((1, 8, 8)), "1x8x8"),
        ("1x3x224x224", Input((3, 224, 224)), "3x224x224"),
        ("3x16x112x112", Input((3, 16, 112, 112)), None),
        ("1x1x16x112x112", Input((1, 16, 112, 112)), None),
        ("pixel_values=1x3x8x8", Input((3, 8, 8), "pixel_values"), None),
        ("pixel_values=3x8x8", Input((3, 8, 8), "pixel_values"), "pixel_values=1x3x8x8"),
        ("x=1x8x8", Input((8, 8), "x"), None),
        ("input_ids=1x16:int64", Input((16,), "input_ids", "int64"), None),
        ("1x16:bool", Input((16,), None, "bool"), None),
    ],
)
def test_inputs_are_read_and_written_as_on_the_command_line(text: str, entry: Input, again: str | None) -> None:
    assert Input.parse(text) == entry
    assert str(entry) == (again or text)


@pytest.mark.parametrize("text", ["8x8", "", "3x0x8", "3xax8", "x=", "=3x8x8", "x=1", "2x:int64", "a-b=1x3x8x8"])
def test_what_is_not_written_so_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"^--input '{text}' is not a shape: write channels x height x width"):
        Input.parse(text)


@pytest.mark.parametrize("wrong", [(), (Input((3,), "x"), Input((3,), "x"))])
def test_a_name_is_of_one_input(wrong: tuple[Input, ...]) -> None:
    with pytest.raises(UsageError, match="at least one input, and input names must differ"):
        Inputs(wrong)


def test_names_are_those_of_the_onnx_file() -> None:
    assert MEETING.names == ["input0", "input1", "ids", "mask"]
    assert Inputs.of((3, 8, 8)).shapes == {"images": [3, 8, 8]}


def test_samples_are_of_the_model_s_type_and_go_where_forward_wants_them() -> None:
    model = nn.Linear(2, 2, dtype=torch.float64)
    image, _, ids, mask = MEETING.random(5, like=model)
    assert (image.shape, image.dtype) == ((5, 3, 8, 8), torch.float64)
    assert (ids.shape, ids.dtype, set(ids.flatten().tolist())) == ((5, 4), torch.int64, {0, 1})
    assert mask.dtype == torch.bool
    args, kwargs = MEETING.split(["a", "b", "c", "d"])  # type: ignore[list-item]
    assert (args, kwargs) == (("a", "b"), {"ids": "c", "mask": "d"})


def test_a_network_of_several_inputs_is_analysed_cut_and_verified() -> None:
    model = Meeting().eval()
    channels = analyse(model, MEETING)
    (group,) = channels.groups
    assert set(group.layers) >= {"left", "right"} and group.size == 8
    half = channels.all_kept()
    half[:4] = False
    done = remove(model, channels, lambda _: half, MEETING)
    assert done.model.left.out_channels == done.model.right.out_channels == 4
    assert done.difference < 1e-12


@pytest.mark.parametrize(
    ("inputs", "samples"),
    [
        ((Input((1,)),), 0),
        ((Input((1,), "image"),), 0),
        ((Input((1,)), Input((1,))), (0, 1)),
        ((Input((1,)), Input((1,))), [0, 1]),
        ((Input((1,), "left"), Input((1,), "right")), {"right": 1, "left": 0}),
    ],
)
def test_the_inputs_of_a_batch_are_put_in_order(inputs: tuple[Input, ...], samples: object) -> None:
    assert Inputs(inputs).tensors(samples) == [0, 1][: len(inputs)]


def test_a_network_that_is_given_too_few_inputs_says_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"does not run on inputs of 3x8x8, 3x8x8: .*ids.*\n.*--input NAME="):
        analyse(Meeting(), [(3, 8, 8), (3, 8, 8)])


def test_an_answer_without_tensors_is_refused() -> None:
    class Silent(nn.Linear):
        def forward(self, x: Tensor) -> None:
            super().forward(x)

    with pytest.raises(UsageError, match="output contains no tensor"):
        analyse(Silent(2, 2), (2,))
