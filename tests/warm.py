"""Runs once in the server of processes.py, before it forks: slow imports, and filling the exporter's caches."""

import os
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: threads do not survive a fork

import sklearn.datasets  # noqa: F401  # the digits
from tqdm import tqdm

import compressor.cli
import compressor.report.plots  # noqa: F401
from compressor.demo import DigitsNet
from compressor.onnx.export import export_onnx

tqdm.monitor_interval = 0  # the exporter's progress bars would start a thread

with tempfile.TemporaryDirectory() as folder:
    export_onnx(DigitsNet(4), (1, 8, 8), Path(folder) / "model.onnx")
