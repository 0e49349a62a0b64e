"""Shared by all tests: the real data and checkpoints, one thread per worker, and a fixed seed."""

import os
from pathlib import Path

import pytest
import torch

pytest_plugins = ["small"]  # the fixtures of tests/small.py

SHARED = Path(os.environ.get("COMPRESS_SHARED", Path(__file__).parents[2] / "shared"))


torch.set_num_threads(1)  # several workers share the machine: contending threads would cost minutes


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real checkpoints and images. If it is missing, tests fail in CI and are skipped elsewhere."""
    if not SHARED.is_dir():
        message = f"{SHARED} does not exist: set COMPRESS_SHARED to the folder that contains checkpoints/ and data/"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return SHARED


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
