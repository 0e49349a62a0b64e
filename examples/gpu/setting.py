"""What the programs of this folder share: their options, the working folder, and how a measurement becomes a row."""

import argparse
import contextlib
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rows import Value, emit

ROOT = Path(__file__).parents[2]
RESNET20, VGG = ROOT / "examples/cifar/resnet.py", ROOT / "examples/cifar/vgg.py"
DIGITS_NET = "compressor.demo:DigitsNet"


class Unavailable(Exception):
    """This machine, or the folder of assets, lacks what a measurement needs."""


@dataclass(frozen=True)
class Setting:
    """`work` holds what prepare.py made; `tiny` is for a test of these programs on a CPU."""

    work: Path
    device: str
    tiny: bool

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def digits(self) -> Path:
        """A `DigitsNet` trained on digits."""
        return self.work / "digits.pt"

    @property
    def resnet20(self) -> Path:
        return self.work / "resnet20.pt"

    @property
    def vgg(self) -> Path:
        return self.work / "vgg.pt"

    @property
    def vgg_arguments(self) -> dict[str, object]:
        return {"widths": (8, 16, 32), "hidden": 64} if self.tiny else {}

    @property
    def small(self) -> Path:
        """A folder of images of 32 x 32 pixels in ten classes, for a training of seconds."""
        return self.work / "small"

    @property
    def cifar10(self) -> Path:
        """Raises Unavailable."""
        if not (self.work / "cifar10").is_dir():
            raise Unavailable("no cifar10.tar.gz in --assets")
        return self.work / "cifar10"

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def peak_mib(self) -> float | None:
        """The most GPU memory that tensors took in this process since the last call, MiB; None on the CPU."""
        if not self.on_gpu:
            return None
        peak = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return round(peak, 1)


def parse(description: str, names: Sequence[str]) -> tuple[Setting, list[str]]:
    """The setting, and which of `names` to measure: those on the command line, or all."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"by default all: {', '.join(names)}")
    parser.add_argument("--work", type=Path, required=True, help="the folder that prepare.py filled")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="as little as shows that the program works")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return Setting(options.work.resolve(), options.device, options.tiny), options.names or list(names)


@contextlib.contextmanager
def measurement(name: str) -> Iterator[dict[str, Value]]:
    """Yields the dict to fill with values; afterwards they are a row, also when an exception ended the measurement."""
    began, values = time.perf_counter(), dict[str, Value]()
    try:
        yield values
    except Unavailable as error:
        emit(name, {}, time.perf_counter() - began, "unavailable", str(error))
    except Exception as error:
        traceback.print_exc()
        emit(name, values, time.perf_counter() - began, "failed", f"{type(error).__name__}: {error}"[:2000])
    else:
        emit(name, values, time.perf_counter() - began)
