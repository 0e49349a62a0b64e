"""Check that two versions of the package have identical results: the same seeded runs of each command with both.

    python tests/identity.py before                  writes the runs to a folder, with the package that Python imports
    python tests/identity.py before after            compares two such folders

`model.onnx`, `model.safetensors`, `plan.json` and `config.toml` must be identical, and `report.json` except for times,
versions and the command. Both folders must be made on the same machine.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

NET = '''
from torch import nn


class Net(nn.Module):
    """[n, 1, 8, 8] -> [n, 10], with a residual connection, a norm after each convolution but one, and dropout."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.conv1, self.bn1 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width)
        self.conv2, self.bn2 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x):
        x = self.stem(x)
        x = (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()
        return self.head(self.dropout(self.down(x).relu().mean(dim=(2, 3))))
'''
ARCH = ("--arch", "net.py:Net", "--data", "digits", "--seed", "3")
RUNS = {
    "prune": ("prune", "net.pt", *ARCH, "--rate", "0.5", "--method", "pgmpf", "--epochs", "3", "--ema-decay", "0.9"),
    "cut": ("prune", "prune", "--data", "digits", "--target", "params=30%", "--method", "taylor"),
    "lowrank": ("lowrank", "net.pt", *ARCH, "--rate", "0.4", "--epochs", "1"),
    "distill": ("distill", "--teacher", "net.pt", *ARCH, "--rate", "0.5", "--method", "dkd", "--epochs", "2"),
    "quantize": ("quantize", "prune", "--data", "digits"),
}
SAME = ("model.onnx", "model.safetensors", "plan.json", "config.toml")
OTHER = {
    "seconds",
    "times",
    "images_per_second",
    "latency",
    "ms",
    "ms_after",
    "created",
    "command",
    "verdict",
    "versions",
    "teaching",
}


def make(folder: Path) -> None:
    """All runs, each in its own process, from random weights trained for two epochs."""
    folder.mkdir(parents=True)
    (folder / "net.py").write_text(NET)
    draw = "import torch, net; torch.manual_seed(0); torch.save(net.Net().state_dict(), 'drawn.pt')"
    _python(folder, "-c", draw)
    learn = ("distill", "--teacher", "drawn.pt", "--student-arch", "net.py:Net", *ARCH, "--epochs", "2", "--set", "kd=0")
    _python(folder, "-m", "compressor", *learn, "--out", "learned")
    weights = "import safetensors.torch as s, torch; torch.save(s.load_file('learned/model.safetensors'), 'net.pt')"
    _python(folder, "-c", weights)
    for name, arguments in RUNS.items():
        _python(folder, "-m", "compressor", *arguments, "--out", name)


def _python(folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed with exit status {done.returncode}:\n{done.stdout}{done.stderr}")


def differences(before: Path, after: Path) -> list[str]:
    """The files and report entries that differ between two folders of runs."""
    found = []
    for name in RUNS:
        for file in SAME:
            paths = before / name / file, after / name / file
            if not all(path.exists() for path in paths) and not any(path.exists() for path in paths):
                continue  # a quantized network has only an ONNX file
            if not all(path.exists() for path in paths) or paths[0].read_bytes() != paths[1].read_bytes():
                found.append(f"{name}/{file}")
        one, other = (_lasting(json.loads((folder / name / "report.json").read_text())) for folder in (before, after))
        found += [f"{name}/report.json: {path}" for path in _unequal(one, other, "")]
    return found


def _lasting(value: Any) -> Any:
    """A part of a report without what depends on time or version."""
    if isinstance(value, dict):
        return {key: _lasting(part) for key, part in value.items() if key not in OTHER}
    if isinstance(value, list):
        return [_lasting(part) for part in value if not str(part).startswith("no faster")]
    return value


def _unequal(one: Any, other: Any, path: str) -> list[str]:
    """The paths at which two values differ, each with both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = dict.fromkeys([*one, *other])
        return [found for key in names for found in _unequal(one.get(key), other.get(key), f"{path}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [name for i, pair in enumerate(zip(one, other, strict=True)) for name in _unequal(*pair, f"{path}[{i}]")]
    return [] if one == other else [f"{path.lstrip('.')}: {repr(one)[:60]} and {repr(other)[:60]}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    folders = parser.parse_args().folders
    if len(folders) == 1:
        make(folders[0])
    elif found := differences(*folders[:2]):
        raise SystemExit("not identical:\n" + "\n".join(found))
    else:
        print(f"identical: {', '.join(RUNS)}")


if __name__ == "__main__":
    main()
