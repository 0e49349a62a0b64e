"""Make a trained PyTorch vision model smaller and faster, and prove it.

    compressor.prune("model.pt", rate=0.5, data="imagefolder:photos", out="runs/half")   # -> Report
    compressor.load("runs/half")                                                          # -> the pruned torch.nn.Module

Everything here is imported when it is first used, so that importing the package is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compressor.version import __version__ as __version__

_HOME = {
    "CompressError": "compressor.errors",
    "Recipe": "compressor.training.recipe",
    "Report": "compressor.report",
    "analyse": "compressor.channels",
    "compare": "compressor.runs.compare",
    "distill": "compressor.runs.distill",
    "load": "compressor.checkpoint",
    "lowrank": "compressor.runs.lowrank",
    "measure_sensitivity": "compressor.runs.sensitivity",
    "open_data": "compressor.data",
    "prune": "compressor.runs.prune",
    "quantize": "compressor.runs.quantize",
    "read_report": "compressor.report",
}

if TYPE_CHECKING:
    from compressor.channels import analyse
    from compressor.checkpoint import load
    from compressor.data import open_data
    from compressor.errors import CompressError
    from compressor.report import Report, read_report
    from compressor.runs.compare import compare
    from compressor.runs.distill import distill
    from compressor.runs.lowrank import lowrank
    from compressor.runs.prune import prune
    from compressor.runs.quantize import quantize
    from compressor.runs.sensitivity import measure_sensitivity
    from compressor.training.recipe import Recipe

__all__ = [
    "CompressError",
    "Recipe",
    "Report",
    "analyse",
    "compare",
    "distill",
    "load",
    "lowrank",
    "measure_sensitivity",
    "open_data",
    "prune",
    "quantize",
    "read_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
