"""What all tests share: the real data and checkpoints, and a quiet machine."""

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(os.environ.get("COMPRESS_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real checkpoints and images. Absent: a failure in CI, a skip elsewhere."""
    if not SHARED.is_dir():
        message = f"{SHARED} is not here; set COMPRESS_SHARED to the folder that holds checkpoints/ and data/"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return SHARED


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
