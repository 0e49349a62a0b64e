"""Untrusted files are accepted or refused as documented, and do no harm: a short run of tests/hostile.py."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import hostile
import mutations
import pytest
import torch
from hostile import Outcome
from small import NET, compress, make_net

INPUTS, SEED = 2000, 0


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """From a separate process that can fork: this one already has threads."""
    command = [sys.executable, hostile.__file__, "--inputs", str(INPUTS), "--seed", str(SEED), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=280)
    assert done.returncode in (0, 1) and done.stdout, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return [Outcome(**outcome) for outcome in found]


@pytest.mark.slow
def test_no_input_is_a_fault(outcomes: list[Outcome], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{hostile.table(outcomes)}")
    assert len(outcomes) == INPUTS
    faults = [f"{one.kind}, --seed {SEED} --only {one.index}: {one.fault}" for one in outcomes if one.fault]
    assert not faults, "\n".join(faults)


@pytest.mark.slow
def test_inputs_of_every_kind_are_refused_and_of_most_kinds_some_are_accepted(outcomes: list[Outcome]) -> None:
    """Otherwise the mutations are too mild, or so strong that only the first check of a file is tested."""
    ended = Counter((one.kind, one.status) for one in outcomes)
    assert all(ended[kind, 2] >= 5 for kind in hostile.KINDS), ended
    seldom = {"pickled module", "TorchScript and other archives", "config.toml", "compress.toml", "run to resume", "CIFAR"}
    assert all(ended[kind, 0] or kind in seldom for kind in hostile.KINDS), ended


@pytest.mark.parametrize("trusted", [False, True])
def test_the_canary_dies_where_a_pickle_is_trusted_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    torch.save({"state_dict": make_net().state_dict(), "x": mutations.PAYLOADS["os.system"]()}, "input.pt")
    options = ["--trust-pickle"] if trusted else []
    result = compress("inspect", "input.pt", "--arch", hostile.ARCH, "--input", "1x8x8", *options)
    assert result.exit_code == (0 if trusted else 2)
    assert Path(mutations.CANARY).exists() == trusted
