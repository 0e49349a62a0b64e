"""Tensors are found in all kinds of network outputs."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from compressor.errors import UsageError
from compressor.network.outputs import logits_of, main_first, tensors_in

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


def test_an_answer_without_tensors_is_told() -> None:
    with pytest.raises(UsageError, match="returns dict, which contains no tensor"):
        logits_of({"loss": None})
