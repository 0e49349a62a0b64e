"""What a run knows of its network's inputs: constants of forward, the range of values, and real images in their place."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small import compress, make_net, prune
from torch import nn

import compressor
from compressor.checkpoint.plan import Plan, from_json, to_json
from compressor.data import open_data
from compressor.errors import CheckpointError, UsageError
from compressor.network.constants import bind, checked, constants_of
from compressor.network.copying import clone_network
from compressor.network.inputs import Inputs
from compressor.report import read_report
from compressor.runs.sources import Images, Source, open_both

SCALED = """
from torch import nn
from torch.nn import functional as F


class Scaled(nn.Module):
    \"\"\"Enlarges images by `scale`, an argument of forward, as CARN does.\"\"\"

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x, scale):
        return self.last(F.interpolate(self.second(self.first(x).relu()).relu(), scale_factor=scale))
"""
SMALL = torch.zeros(1, 1, 8, 8)


@pytest.fixture
def scaled(project: Path) -> Path:
    (project / "scaled.py").write_text(SCALED)
    return project


def prune_scaled(*arguments: object):
    return compress("prune", "scaled.py:Scaled", *arguments)


class Adds(nn.Module):
    def forward(self, x: torch.Tensor, by: float, *, times: int = 1) -> torch.Tensor:
        return (x + by) * times


# Constants ------------------------------------------------------------------------------------------------------------


def test_constants_are_bound_to_a_network_and_its_copies() -> None:
    model = Adds()
    bind(model, {"by": 2.0, "times": 3})
    assert model(torch.ones(1)).item() == 9
    assert clone_network(model)(torch.ones(1)).item() == 9
    assert model(torch.ones(1), times=1).item() == 3  # a call's own value
    bind(model, {"by": 1.0})
    assert model(torch.ones(1)).item() == 6 and constants_of(model) == {"by": 1.0, "times": 3}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bye": 2}, "has no argument of this name; did you mean 'by'"),
        ({"by": None}, "by=None is not a constant"),
        ({"by": [1]}, "is not a constant"),
        ({"by": float("nan")}, "is not a constant"),
        ({"by": "x" * 1000}, "is not a constant"),
        ({"not a name": 1}, "is not a constant"),
    ],
)
def test_what_is_no_constant_of_forward_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        bind(Adds(), values)


def test_constants_are_kept_in_the_plan_and_checked_when_it_is_read() -> None:
    plan = Plan("a.py:A", constants={"scale": 2, "mode": "bicubic", "clip": True, "gain": 0.5})
    assert from_json(to_json(plan), "plan.json").constants == plan.constants
    forged = json.dumps({**json.loads(to_json(plan)), "constants": {"scale": [1, 2]}})
    with pytest.raises(CheckpointError, match="is not a valid plan"):
        from_json(forged, "plan.json")
    assert "constants" not in json.loads(to_json(Plan("a.py:A")))
    assert checked({"clip": True}) == {"clip": True}


def test_a_network_with_a_constant_is_compressed_loaded_and_exported(scaled: Path) -> None:
    torch.manual_seed(0)
    made: dict[str, Any] = {}
    exec(SCALED, made)
    torch.save(made["Scaled"]().state_dict(), "scaled.pt")
    network = ("scaled.pt", "--arch", "scaled.py:Scaled", "--input", "1x8x8")
    result = compress("prune", *network, "--rate", "0.5", "--out", "none")
    assert result.exit_code == 2 and "scale" in result.stderr and result.stderr.count("\n") <= 2
    result = compress("prune", *network, "--rate", "0.5", "--constant", "size=2", "--out", "none")
    assert result.exit_code == 2 and "no argument of this name" in result.stderr and "It takes x, scale." in result.stderr
    result = compress("prune", *network, "--rate", "0.5", "--constant", "scale=3", "--out", "a")
    assert result.exit_code == 0, result.output
    assert json.loads(Path("a/plan.json").read_text())["constants"] == {"scale": 3}
    assert read_report(Path("a")).settings["constant"] == "scale=3"
    assert 'constant = ["scale=3"]' in Path("a/config.toml").read_text()
    assert compressor.load("a")(SMALL).shape == (1, 1, 24, 24)
    result = compress("lowrank", "a", "--rate", "0.1", "--no-onnx", "--out", "b")
    assert result.exit_code == 0, result.output
    assert compressor.load("b")(SMALL).shape == (1, 1, 24, 24)
    result = compress("lowrank", "a", "--rate", "0.1", "--constant", "scale=2", "--no-onnx", "--out", "c")
    assert compressor.load("c")(SMALL).shape == (1, 1, 16, 16)


# The range of values --------------------------------------------------------------------------------------------------


def test_random_inputs_have_the_range_that_was_given() -> None:
    inputs = Inputs(Inputs.of((1, 8, 8)).each, (-1.0, 255.0))
    (sample,) = inputs.random(100)
    assert -1 <= sample.min() < 0 and 254 < sample.max() <= 255
    assert torch.equal(sample, inputs.random(100)[0]) and not torch.equal(sample, inputs.random(100, seed=1)[0])


@pytest.mark.parametrize("text", ["0", "1,0", "0,0", "0,1,2", "a,b", "nan,1", "0,inf"])
def test_what_is_no_range_is_refused(project: Path, text: str) -> None:
    result = prune("--rate", "0.5", "--input", "1x8x8", "--input-range", text, "--out", "a")
    assert result.exit_code == 2 and "LOW" in result.stderr and result.stderr.startswith(f"error: --input-range '{text}'")


def test_the_range_is_used_again_when_the_run_is_opened(project: Path) -> None:
    arguments = ("--rate", "0.5", "--input", "1x8x8", "--no-onnx")
    assert prune(*arguments, "--input-range", "-1,2", "--out", "a").exit_code == 0
    assert json.loads(Path("a/plan.json").read_text())["input_range"] == [-1, 2]
    assert read_report(Path("a")).settings["input_range"] == "-1,2"
    assert open_both(Source("a"), Images(), None).inputs.range == (-1, 2)
    assert open_both(Source("a"), Images(), Inputs.of((1, 8, 8))).inputs.range == (-1, 2)
    assert open_both(Source("a", input_range=(0, 1)), Images(), None).inputs.range == (0, 1)
    assert prune(*arguments, "--out", "b").exit_code == 0
    assert "input_range" not in json.loads(Path("b/plan.json").read_text())
    assert compress("prune", "a", "--rate", "0.2", "--no-onnx", "--out", "c").exit_code == 0
    assert json.loads(Path("c/plan.json").read_text())["input_range"] == [-1, 2]


@pytest.mark.parametrize("span", [[0], [1, 0], "0x", [0, "1e999"], {}])
def test_a_forged_range_is_refused(span: Any) -> None:
    plan = json.loads(to_json(Plan("a.py:A", inputs=(1, 8, 8))))
    with pytest.raises(CheckpointError, match="is not a valid plan"):
        from_json(json.dumps({**plan, "input_range": span}), "plan.json")


# Real images ----------------------------------------------------------------------------------------------------------


def test_with_data_the_samples_are_held_out_images(project: Path) -> None:
    opened = open_both(Source("net.pt", "net.py:Net"), Images("digits"), None)
    held_out = next(iter(open_data("digits").batches("held_out", batch_size=16, device="cpu", limit=16))).inputs
    one, three = opened.inputs.random(1, seed=1)[0], opened.inputs.random(3, seed=14)[0]
    assert torch.equal(one, held_out[1:2])
    assert torch.equal(three, held_out[[14, 15, 0]])
    assert opened.inputs.random(2, like=make_net().double())[0].dtype == torch.float64
