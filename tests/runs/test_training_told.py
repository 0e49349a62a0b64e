"""What a report says about its training: that it lowered the score, which epoch was kept, and that it ended early."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small import make_net, prune

from compressor.data import open_data
from compressor.report import read_report

HALF = ("--rate", "0.5", "--data", "digits")


@pytest.fixture
def trained(project: Path) -> Path:
    """net.pt has learnt the digits."""
    torch.manual_seed(0)
    net, data = make_net(), open_data("digits")
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for epoch in range(6):
        for batch in data.batches("train", batch_size=128, device="cpu", epoch=epoch, augment=False):
            optimizer.zero_grad()
            F.cross_entropy(net(batch.inputs), batch.targets).backward()
            optimizer.step()
    torch.save(net.state_dict(), project / "net.pt")
    return project


@pytest.mark.parametrize("select", ["last", "best"])
def test_training_that_lowers_the_score_is_told(trained: Path, select: str) -> None:
    result = prune(*HALF, "--epochs", "1", "--lr", "3", "--teacher", "none", "--select", select, "--out", "a")
    assert result.exit_code == 0
    report = read_report(Path("a"))
    told = [warning for warning in report.warnings if "made the network worse" in warning]
    scores = {stage.name: stage.scores[0].value for stage in report.stages if stage.scores}
    if select == "last":
        assert scores["fine-tuned"] < scores["repaired"]
        assert report.verdict.endswith(", training lowered the score")
        assert len(told) == 1 and "of 144 held-out images (lower --lr, or use --select best or --epochs 0)" in told[0]
    else:
        assert not told and scores["fine-tuned"] == scores["repaired"]
        assert "the weights after epoch 0 of 1 were kept (--select best)" in report.warnings


@pytest.mark.parametrize("option", [("--select", "best"), ("--patience", "2")])
def test_a_method_that_prunes_while_it_trains_keeps_its_last_epoch(project: Path, option: tuple[str, str]) -> None:
    result = prune(*HALF, "--method", "sfp", "--epochs", "1", *option, "--out", "a")
    assert result.exit_code == 2
    assert "--method sfp prunes while it trains, so that only its last epoch has the asked size" in result.stderr
    assert not Path("a").exists()


def test_impatience_is_told(project: Path) -> None:
    result = prune(
        *HALF, "--epochs", "6", "--lr", "1e-9", "--teacher", "none", "--patience", "1", "--select", "best", "--out", "a"
    )
    assert result.exit_code == 0, result.stderr
    report = read_report(Path("a"))
    assert len(report.epochs) < 6
    assert f"training ended after epoch {len(report.epochs)} of 6 (--patience)" in report.warnings
