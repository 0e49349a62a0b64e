"""Latency of layers: measured once for each type and size of layer, and stored."""

from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.errors import UsageError
from compressor.methods.lowrank.perforated_conv import Rows, perforate
from compressor.onnx.layer_latency import Clock


def test_what_was_measured_is_kept_and_asked_for_once(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "times.json")
    layer = nn.Conv2d(3, 8, 3)
    found = clock(layer, (1, 3, 16, 16))
    assert found > 0
    with torch.device("meta"):
        same = nn.Sequential(nn.Conv2d(3, 8, 3))
    assert Clock(tmp_path / "times.json")(same, (1, 3, 16, 16)) == found
    assert clock(layer, (1, 3, 9, 9)) != found


def test_which_places_are_taken_makes_no_difference_but_how_many(tmp_path: Path) -> None:
    clock, layer = Clock(), nn.Sequential(nn.Conv2d(3, 4, 3))
    (two, others, three) = (perforate(layer, (8, 8), Rows(rows)) for rows in ((0, 1), (2, 5), (0, 2, 5)))
    clock(two, (1, 3, 8, 8))
    known = dict(clock.known)
    assert len(known) == 2, "the layer and the yardstick"
    clock(others, (1, 3, 8, 8))
    assert clock.known == known
    clock(three, (1, 3, 8, 8))
    assert len(clock.known) == 3


@pytest.mark.parametrize("text", ["", "[]", '{"a": "x"}', '{"a": NaN}', '{"a": 0}', "[" * 100_000, "\x80"])
def test_times_that_are_damaged_are_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "times.json").write_text(text, encoding="latin1")
    with pytest.raises(UsageError, match=r"times\.json is damaged\. --force starts the run over"):
        Clock(tmp_path / "times.json")
