"""Make a trained PyTorch vision model smaller and faster, and prove it.

    compressor.prune("model.pt", rate=0.5, data="imagefolder:photos", out="runs/half")   # -> Report
    compressor.load("runs/half")                                                          # -> the small torch.nn.Module

Everything here is imported when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "CompressError": "compressor.errors",
    "Recipe": "compressor.recipe",
    "Report": "compressor.report",
    "analyse": "compressor.channels",
    "compare": "compressor.comparison",
    "distill": "compressor.distilling",
    "load": "compressor.evaluate",
    "lowrank": "compressor.factoring",
    "measure_sensitivity": "compressor.sensitivity",
    "open_data": "compressor.data",
    "prune": "compressor.pruning",
    "quantize": "compressor.quantizing",
    "read_report": "compressor.report",
}

if TYPE_CHECKING:
    from compressor.channels import analyse
    from compressor.comparison import compare
    from compressor.data import open_data
    from compressor.distilling import distill
    from compressor.errors import CompressError
    from compressor.evaluate import load
    from compressor.factoring import lowrank
    from compressor.pruning import prune
    from compressor.quantizing import quantize
    from compressor.recipe import Recipe
    from compressor.report import Report, read_report
    from compressor.sensitivity import measure_sensitivity

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
