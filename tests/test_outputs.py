"""Tensors are found in whatever a network returns."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from compressor.outputs import tensors_in

A, B, C = (torch.full((1,), float(i)) for i in range(3))
Pair = namedtuple("Pair", "first second")


class Boxes(list[Any]):
    """A subclass, which torch's pytree takes for a leaf."""


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


def test_a_hugging_face_output_is_read_in_order() -> None:
    from transformers.modeling_outputs import ImageClassifierOutput

    assert [tensor.item() for tensor in tensors_in(ImageClassifierOutput(logits=A, hidden_states=(B, C)))] == [0, 1, 2]


def test_what_holds_no_tensor_gives_none() -> None:
    assert tensors_in((1, "text", None, Answer)) == []
