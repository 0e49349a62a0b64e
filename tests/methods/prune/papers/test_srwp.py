"""Softer weight pruning: which weights are scaled down, and that the report states the missing gain in speed."""

from pathlib import Path

import pytest
import torch
from small import prune
from torch import nn
from toy import job, optimizer, train

from compressor.methods.prune.papers.srwp import SRWP
from compressor.network.cost import sparsity
from compressor.report import read_report


def four_weights() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 4, 1, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 3.0, -4.0]).view(4, 1, 1, 1))
    return model


def test_the_smallest_weights_of_each_layer_shrink() -> None:
    method = SRWP(job("weights=50%", four_weights(), (1, 4, 4)))
    method.weaken(0.5)
    assert method.model[1].weight.flatten().tolist() == [0.5, -1.0, 3.0, -4.0]
    assert method.model[0].weight.abs() > 0, "half of one weight is none"


def test_in_the_end_they_are_zero_and_nothing_else_is() -> None:
    method = SRWP(job("weights=70%"))
    method.prepare()
    train(method, optimizer(method), range(3), 3)
    shapes = {name: value.shape for name, value in method.job.model.state_dict().items()}
    small = method.finish()
    assert {name: value.shape for name, value in small.state_dict().items()} == shapes
    for parameter in small.parameters():
        gone = int((parameter == 0).sum())
        assert gone == (int(0.7 * parameter.numel() + 1e-9) if parameter.dim() >= 2 else 0)


def test_a_run_tells_the_share_of_zeros_and_that_nothing_is_faster(project: Path) -> None:
    trained = ("--data", "digits", "--epochs", "1", "--out", "sparse")
    result = prune("--method", "srwp", "--target", "weights=70%", *trained)
    assert result.exit_code == 0, result.output
    report = read_report(project / "sparse")
    assert report.target.asked == 0.7 and report.target.reached == pytest.approx(0.7, abs=0.01)
    assert report.change.macs == report.change.params == 1
    assert any("as slow and large as before" in warning for warning in report.warnings)
    assert [stage.name for stage in report.stages] == ["original", "trained", "ONNX"]


@pytest.mark.parametrize(("method", "goal"), [("srwp", ("--rate", "0.5")), ("sfp", ("--target", "weights=70%"))])
def test_weights_and_channels_are_not_confused(project: Path, method: str, goal: tuple[str, str]) -> None:
    result = prune("--method", method, *goal, "--data", "digits", "--epochs", "1")
    assert result.exit_code == 2 and "weights=70%" in result.output


def test_sparsity_counts_layers_alone() -> None:
    assert sparsity(four_weights()) == 0
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    nn.init.zeros_(model[1].weight)
    with torch.no_grad():
        model[0].weight[0, 0] = 0
    assert sparsity(model) == 0.25
