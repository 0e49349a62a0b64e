"""DML: the loss between two and three peers in numbers, and no gradient into the peer that teaches."""

from math import log

import pytest
import torch
from toy import batches, job

from compressor.errors import UsageError
from compressor.methods.distill.papers.dml import DML, mutual

EVEN, SURE = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
TO_SURE = 0.9 * log(0.9 / 0.5) + 0.1 * log(0.1 / 0.5)  # KL(sure || even), the loss of the even one
TO_EVEN = 0.5 * log(0.5 / 0.9) + 0.5 * log(0.5 / 0.1)


def test_two_peers_by_hand() -> None:
    assert mutual([EVEN, SURE], 1.0).item() == pytest.approx(TO_SURE + TO_EVEN)
    assert mutual([2 * EVEN, 2 * SURE], 2.0).item() == pytest.approx(4 * (TO_SURE + TO_EVEN))


def test_a_third_peer_shares_the_weight() -> None:
    """(even, sure) and (sure, even) twice each, 0 between the two even ones, divided by M - 1 = 2."""
    assert mutual([EVEN, SURE, EVEN], 1.0).item() == pytest.approx(TO_SURE + TO_EVEN)


def test_the_other_stands_still() -> None:
    """d KL(p_n || p_m) / d z_m = p_m - p_n."""
    learns = EVEN.clone().requires_grad_()
    mutual([learns, SURE], 1.0).backward()
    torch.testing.assert_close(learns.grad, torch.tensor([[0.5 - 0.9, 0.5 - 0.1]]))


def test_peers_begin_apart_and_agree_when_they_are_alike() -> None:
    method, (batch,) = DML(job("macs=50%"), peers=3), batches(1)
    assert len(method.others) == 2 and method.loss(batch)["mutual"] > 0.01
    for other in method.others:
        other.load_state_dict(method.model.state_dict())
    terms = method.eval().loss(batch)
    assert terms["mutual"].item() == pytest.approx(0, abs=1e-6)
    alone = method.job.task.loss(method.model(batch.inputs), batch)["cross_entropy"]
    torch.testing.assert_close(terms["cross_entropy"], 3 * alone)


def test_a_term_that_is_off_is_not_there() -> None:
    (batch,) = batches(1)
    assert list(DML(job("macs=50%"), mutual=0.0).loss(batch)) == ["cross_entropy"]
    assert list(DML(job("macs=50%"), cross_entropy=0.0).loss(batch)) == ["mutual"]


@pytest.mark.parametrize("settings", [{"peers": 1}, {"temperature": 0.0}])
def test_settings_that_make_no_sense(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"--set {next(iter(settings))}"):
        DML(job("macs=50%"), **settings)
