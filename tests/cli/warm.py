"""Imported once by the process from which `processes.py` forks: what takes long is then done."""

import tempfile
from pathlib import Path

import torch

import compressor.pruning  # noqa: F401  # what a run imports
from compressor.data import open_data
from compressor.demo import DigitsNet
from compressor.export import export_onnx

torch.set_num_threads(1)  # as the tests' own process does, and because threads do not survive a fork
with tempfile.TemporaryDirectory() as folder:
    export_onnx(DigitsNet(8), (1, 8, 8), Path(folder) / "a.onnx")
open_data("digits")
