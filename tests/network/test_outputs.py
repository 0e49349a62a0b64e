"""Tensors are found in all kinds of network outputs."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import UsageError
from compressor.network.outputs import logits_of, main_first, tensors_in, torch_predict

A, B, C = (torch.full((1,), float(i)) for i in range(3))
Pair = namedtuple("Pair", "first second")


class Boxes(list[Any]):
    """A subclass, which torch's pytree treats as a leaf."""


@dataclass
class Answer:
    logits: Tensor
    hidden: Any = None
    loss: None = None


@pytest.mark.parametrize(
    "output",
    [
        (A, [B, None, C]),
        OrderedDict(out=A, aux={"b": B, "c": C}),
        [{"boxes": A, "scores": B}, {"boxes": C}],
        Pair(A, Pair(B, C)),
        Answer(A, hidden=(B, C)),
        UserDict(out=A, rest=Boxes([B, C])),
    ],
    ids=["tuple", "mapping", "detections", "namedtuple", "dataclass", "subclasses"],
)
def test_tensors_are_found_in_order(output: Any) -> None:
    assert [tensor.item() for tensor in tensors_in(output)] == [0, 1, 2]


def test_what_holds_no_tensor_gives_none() -> None:
    assert tensors_in((1, "text", None, Answer)) == []


@pytest.mark.parametrize(
    "output",
    [A, (A, B), {"out": A, "aux": B}, {"hidden": B, "logits": A}, Answer(A, hidden=B), Pair(None, A)],
)
def test_the_main_answer_is_found(output: Any) -> None:
    assert logits_of(output) is A
    assert main_first(output)[0] is A


def test_other_answers_follow_the_main_one_in_order() -> None:
    assert [tensor.item() for tensor in main_first({"b": B, "c": C, "logits": A})] == [0, 1, 2]


def test_a_prediction_takes_inputs_as_the_network_does() -> None:
    """Floats are cast to the type of the weights; whole numbers are not."""

    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))

        def forward(self, x: Tensor, *, ids: Tensor) -> dict[str, Tensor]:
            assert x.dtype == torch.float64 and ids.dtype == torch.int64
            return {"rest": ids, "logits": x * self.table[ids]}

    predict, x, ids = torch_predict(Places(), "cpu"), torch.tensor([2.0, 3.0]), torch.tensor([2, 0])
    for found in (predict(x, ids=ids), predict(ids=ids, x=x)):
        assert found.dtype == torch.float32 and found.tolist() == [200, 3]


def test_an_answer_without_tensors_is_told() -> None:
    with pytest.raises(UsageError, match="returns dict, which contains no tensor"):
        logits_of({"loss": None})
