"""Fuzzing with untrusted files: mutations of valid files, and malicious ones, each read in a worker process that may crash.

    python tests/hostile.py --inputs 20000 --seed 1               # a table by kind and outcome; exit status 1 if one failed
    python tests/hostile.py --seed 1 --only 1234 --keep DIR       # writes that input to DIR, and prints its outcome

An input passes if it is accepted, or refused with a documented exit status and one or two printable lines. All else is a
failure: a traceback or a warning, exit status 5, a file written outside of `out`, the canary file that payloads try to create,
more memory than `MEMORY` above the parent (used, or requested and denied), more than `SECONDS`, a crash.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import io
import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mutations
import numpy as np
import onnx
import onnxruntime  # noqa: F401  # slow imports belong before the fork
import torch
from mutations import CANARY, EXTREMES, NAMES, VALUES, Call, Random, broken, broken_json, broken_text
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from small import NET, make_net
from torch import nn
from typer.testing import CliRunner

import compressor.runs.evaluate
import compressor.runs.export
import compressor.runs.inspect
import compressor.runs.sensitivity
from compressor.channels import analyse, remove
from compressor.checkpoint import build, load_model
from compressor.checkpoint.plan import Plan, save_model
from compressor.cli import app
from compressor.data import IGNORED, open_data
from compressor.errors import CompressError, UsageError
from compressor.network.replacements import Chains, describe, make, replaced
from compressor.onnx import latency
from compressor.report import print_report, read_report, to_json
from compressor.report.markdown import to_markdown
from compressor.runs.sensitivity_table import Row, read_sensitivity, to_csv
from compressor.runs.settings import first_change

sys.path.append(str(Path(__file__).parent / "report"))
import example

MEMORY = 3 * 2**30  # bytes that reading one input may take above the parent
SECONDS = 20  # of CPU time
HANGS = 120  # seconds, after which an input counts as hanging
LETTERS = 2100  # longest message
LIBTIFF = re.compile(r"^[\w.]+: [ -~]+\n", re.M)  # its warnings about damaged files cannot be redirected
DENIED = re.compile(r"can't allocate|bad_alloc|MemoryError|[Oo]ut of memory|Failed to allocate|Unable to allocate")
OUTSIDE = "/tmp/escaped-from-a-name"  # one of the names in files
ARCH = "net.py:Net"

# Valid files ----------------------------------------------------------------------------------------------------------


def write_seeds(folder: Path) -> None:
    """One valid file, or directory, of every kind; net.py is the code of the checkpoints and of the runs."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    (folder / "net.py").write_text(NET)
    net = make_net().eval()
    weights = net.state_dict()
    training = {
        "epoch": 3,
        "state_dict": {f"module.{k}": v for k, v in weights.items()},
        "optimizer": {"state": {0: {"step": torch.ones(1)}}},
    }
    lightning = {
        "pytorch-lightning_version": "2.5.0",
        "hyper_parameters": {"args": argparse.Namespace(lr=0.1), "lr": np.float64(0.1), "seed": b"x"},
        "callbacks": {"best": defaultdict(list, {"a": [torch.ones(2)]})},
        "state_dict": {f"model.{name}": tensor for name, tensor in weights.items()},
    }
    module = nn.Sequential(nn.Conv2d(1, 4, 3))
    for name, content in {"bare": weights, "training": training, "lightning": lightning, "module": module}.items():
        torch.save(content, folder / f"{name}.pt")
        torch.save(content, folder / f"{name}.old.pt", _use_new_zipfile_serialization=False)
    save_file(weights, folder / "net.safetensors", metadata={"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), folder / "script.pt")
        program = torch.export.export(net, (torch.zeros(2, 1, 8, 8),))
        torch.export.save(program, folder / "net.pt2")
    with contextlib.chdir(folder):
        _write_run(folder / "scatter", "net.py:Net", {}, (1, 8, 8), chain=False)
        _write_run(folder / "chain", "net.py:Net", {"num_classes": 7}, (1, 8, 8), chain=True)
        _write_run(folder / "squeezenet", "torchvision:squeezenet1_1", {"num_classes": 5}, (3, 32, 32), chain=False)
    settings = 'model = "net.pt"\nrate = 0.5\nkeep = ["head.*"]\nlr = 1e-3\nepochs = 3\naugment = true\n'
    (folder / "config.toml").write_text(settings)
    (folder / "compress.toml").write_text(PIPELINE)
    (folder / "report.json").write_text(to_json(example.example()))
    (folder / "blind.json").write_text(to_json(example.without_data()))
    (folder / "denoiser.json").write_text(to_json(example.restoration()))
    shutil.copy(Path(__file__).parent / "old_files" / "prune" / "report.json", folder / "old.json")
    rows = [
        Row("conv1", 16, rate, 16 - round(16 * rate), "top-1", 0.9 - rate / 3, 1 - rate / 3, rate, rate / 5, rate / 6)
        for rate in (0.0, 0.25, 0.5, 0.75)
    ]
    (folder / "sensitivity.csv").write_text(to_csv([*rows, *(replace(row, group="stem", agreement=1.0) for row in rows)]))
    onnx.save(_onnx_network(), folder / "net.onnx")
    _write_images(folder / "images")
    _write_fashion(folder / "FashionMNIST" / "raw")
    cifar = folder / "cifar-10-batches-py"
    cifar.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (cifar / name).write_bytes(pickle.dumps({"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1, 2]}))


def _write_run(folder: Path, arch: str, args: dict[str, object], shape: tuple[int, int, int], chain: bool) -> None:
    """The network of a finished run: every second channel pruned and, with `chain`, a layer factored."""
    model = build(arch, args).eval()
    channels = analyse(model, shape, "scatter")
    half = channels.all_kept()
    half[::2] = False
    done = remove(model, channels, lambda _: half, shape)
    plan, small = Plan(arch, args, shape).then(done.cut), done.model
    if chain:
        first = nn.Conv2d(small.conv1.in_channels, 3, (3, 1), padding=(1, 0), bias=False)
        parts = describe(nn.Sequential(first, nn.Conv2d(3, small.conv1.out_channels, (1, 3), padding=(0, 1))))
        small, plan = replaced(small, {"conv1": make(parts)}), plan.then(Chains({"conv1": parts}))
    save_model(folder, small, plan)


def _onnx_network() -> onnx.ModelProto:
    """A convolution, a mean and a matrix product, with a dynamic batch size."""
    rng = np.random.default_rng(0)
    weight, head = rng.normal(size=(4, 1, 3, 3)), rng.normal(size=(4, 10))
    nodes = [
        onnx.helper.make_node("Conv", ["images", "weight"], ["made"], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Relu", ["made"], ["kept"]),
        onnx.helper.make_node("ReduceMean", ["kept", "axes"], ["mean"], keepdims=0),
        onnx.helper.make_node("MatMul", ["mean", "head"], ["logits"]),
    ]
    tensors = [onnx.numpy_helper.from_array(a.astype(np.float32), n) for a, n in ((weight, "weight"), (head, "head"))]
    axes = onnx.numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
    ends = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
        for n, s in (("images", ["n", 1, 8, 8]), ("logits", ["n", 10]))
    ]
    graph = onnx.helper.make_graph(nodes, "net", ends[:1], ends[1:], [*tensors, axes])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


MODES = {
    **{f"rgb.{ending}": "RGB" for ending in ("jpg", "png", "bmp", "ppm", "tif", "webp")},
    **{"grey.jpg": "L", "cmyk.jpg": "CMYK", "palette.png": "P", "alpha.png": "RGBA", "deep.png": "I;16", "bits.png": "1"},
    **{"float.tif": "F", "lab.tif": "LAB", "palette.gif": "P"},
}


def _write_images(folder: Path) -> None:
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for name, mode in MODES.items():
        if mode == "I;16":
            image = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257)
        elif mode == "LAB":
            image = Image.frombytes("LAB", (12, 12), noise.tobytes())
        else:
            image = Image.fromarray(noise).convert(mode)
        image.save(folder / name, compression="tiff_lzw" if name == "rgb.tif" else None)


def _write_fashion(folder: Path) -> None:
    folder.mkdir(parents=True)
    for part, n in (("train", 30), ("t10k", 10)):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + bytes(n * 784))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + bytes(i % 10 for i in range(n)))


PIPELINE = """model = "net.pt"
arch = "net.py:Net"
input = ["1x8x8"]

[check]
budget = ["macs<=50%", "warn: latency<=1ms"]
junit = "out/junit.xml"

[prune]
keep = ["head"]

[[steps]]
do = "prune"
rate = 0.4
method = "magnitude"
seed = 1

[[steps]]
do = "check"
"""


# The kinds ------------------------------------------------------------------------------------------------------------

Write = Callable[[Path, Path, Random], None]  # seeds, working directory
Read = Callable[[Random], object]  # in the working directory
KINDS: dict[str, tuple[int, Write, Read]] = {}  # relative frequency, writer and reader


def kind(name: str, share: int, read: Read) -> Callable[[Write], Write]:
    def add(write: Write) -> Write:
        KINDS[name] = share, write, read
        return write

    return add


class Status(Exception):
    """How a command ended."""


def command(*arguments: str) -> None:
    """`compress ARGUMENTS` in this process."""
    result = CliRunner().invoke(app, arguments)
    sys.stdout.write(result.stdout)
    judged = arguments[0] == "check" and result.exit_code < 2  # with --json it prints the budgets on standard error
    (sys.stdout if judged else sys.stderr).write(result.stderr)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    raise Status(result.exit_code)


def _open_checkpoint(rng: Random) -> None:
    if rng.random() < 0.15:
        options = rng.choice(((), ("--ema",), ("--json",), ("--key", "x.y")))
        command("inspect", "input.pt", "--arch", ARCH, "--input", "1x8x8", *options)
    if rng.random() < 0.0005:
        command("inspect", "input.pt")  # takes ten seconds once, to learn all architectures of torchvision
    load_model("input.pt", arch=ARCH, ema=rng.random() < 0.05)


def _seed(seeds: Path, rng: Random, *names: str) -> tuple[bytes, bytes]:
    return (seeds / rng.choice(names)).read_bytes(), (seeds / rng.choice(names)).read_bytes()


@kind("state dict (zip)", 8, _open_checkpoint)
def _zip_checkpoint(seeds: Path, here: Path, rng: Random) -> None:
    data, other = _seed(seeds, rng, "bare.pt", "training.pt", "lightning.pt")

    def spoil(name: str, content: bytes) -> bytes | None:
        if name.endswith("data.pkl"):
            return mutations.broken_pickle(content, rng)
        return broken(content, rng) if rng.random() < 0.05 else None

    made = broken(data, rng, other) if rng.random() < 0.4 else mutations.broken_zip(data, rng, spoil)
    (here / "input.pt").write_bytes(made)


@kind("state dict (before torch 1.6)", 6, _open_checkpoint)
def _old_checkpoint(seeds: Path, here: Path, rng: Random) -> None:
    data, other = _seed(seeds, rng, "bare.old.pt", "training.old.pt", "lightning.old.pt")
    (here / "input.pt").write_bytes(broken(data, rng, other) if rng.random() < 0.5 else mutations.broken_pickle(data, rng))


@kind("pickled module", 2, _open_checkpoint)
def _pickled_module(seeds: Path, here: Path, rng: Random) -> None:
    data, other = _seed(seeds, rng, "module.pt", "module.old.pt")
    (here / "input.pt").write_bytes(broken(data, rng, other))


@kind("payload in a pickle", 8, _open_checkpoint)
def _payload(seeds: Path, here: Path, rng: Random) -> None:
    data = mutations.payload(rng, legacy=rng.random() < 0.4)
    (here / "input.pt").write_bytes(broken(data, rng) if rng.random() < 0.2 else data)


@kind("safetensors", 5, _open_checkpoint)
def _safetensors(seeds: Path, here: Path, rng: Random) -> None:
    (here / "input.pt").write_bytes(mutations.broken_safetensors((seeds / "net.safetensors").read_bytes(), rng))


@kind("exported program (.pt2)", 4, _open_checkpoint)
def _program(seeds: Path, here: Path, rng: Random) -> None:
    def spoil(name: str, content: bytes) -> bytes | None:
        if name.endswith("_weights_config.json"):
            return broken_json(json.loads(content), rng).encode("utf-8", "replace")
        return broken(content, rng) if "weights/" in name and rng.random() < 0.1 else None

    data = (seeds / "net.pt2").read_bytes()
    (here / "input.pt").write_bytes(broken(data, rng) if rng.random() < 0.2 else mutations.broken_zip(data, rng, spoil))


@kind("TorchScript and other archives", 2, _open_checkpoint)
def _script(seeds: Path, here: Path, rng: Random) -> None:
    data = (seeds / "script.pt").read_bytes()
    if rng.random() < 0.3:
        names = rng.sample([*NAMES, "a.npy", "data.pkl", "a/data.pkl", "version", "a/constants.pkl", "archive_format"], 4)
        data = mutations.zipped([(name.encode("utf-8", "replace").decode()[:60000], rng.randbytes(50)) for name in names])
    (here / "input.pt").write_bytes(
        mutations.broken_zip(data, rng, lambda name, content: broken(content, rng)) if rng.random() < 0.5 else broken(data, rng)
    )


def _open_run(rng: Random) -> None:
    chance = rng.random()
    if chance < 0.01:
        command("eval", "run")
    if chance < 0.15:
        command("inspect", "run", *rng.choice(((), ("--json",), ("--graph", "out/graph.mmd"), ("--graph", "out/graph.dot"))))
    compressor.load("run")


@kind("run: its plan", 10, _open_run)
def _plan(seeds: Path, here: Path, rng: Random) -> None:
    source = rng.choice(("scatter", "chain", "scatter", "chain", "squeezenet"))
    shutil.copytree(seeds / source, here / "run")
    plan = here / "run" / "plan.json"
    if rng.random() < 0.1:
        plan.write_bytes(broken(plan.read_bytes(), rng))
    else:
        plan.write_text(
            broken_json(json.loads(plan.read_text()), rng, numbers_alone=rng.random() < 0.4), "utf-8", "surrogatepass"
        )


ARCHES = (
    *("torchvision:alexnet", "torchvision:../x", "timm:resnet18", "os:system", "builtins:exec", "net.py:nn.Module"),
    *("run/evil.py:Net", "run.evil:Net", "/tmp/x.py:Net", "\0.py:a", "x" * 5000 + ".py:a", *NAMES),
)
ARGUMENTS = (
    *(
        "width",
        "num_classes",
        "device",
        "dtype",
        "weights",
        "checkpoint_path",
        "cache_dir",
        "pretrained_cfg",
        "*",
        "self",
        "a b",
    ),
)


@kind("run: its arch", 3, _open_run)
def _arch(seeds: Path, here: Path, rng: Random) -> None:
    shutil.copytree(seeds / "scatter", here / "run")
    (here / "run" / "evil.py").write_text(f"open({CANARY!r}, 'w')\nclass Net: ...\n")
    file = here / "run" / "plan.json"
    arch = ARCH if rng.random() < 0.4 else rng.choice(ARCHES)
    args = {rng.choice(ARGUMENTS): rng.choice((*VALUES, *NAMES)) for _ in range(rng.choice((0, 0, 1, 2)))}
    file.write_text(json.dumps({**json.loads(file.read_text()), "arch": arch, "arch_args": args}))


@kind("run: its weights", 3, _open_run)
def _weights(seeds: Path, here: Path, rng: Random) -> None:
    shutil.copytree(seeds / rng.choice(("scatter", "chain")), here / "run")
    file = here / "run" / "model.safetensors"
    file.write_bytes(mutations.broken_safetensors(file.read_bytes(), rng))


BUDGETS = (
    *("--max-drop", "1", "--min-cut", "40%", "--max-size", "1MB", "--max-latency", "5ms"),
    *("--budget", "agreement>=90%", "--budget", "psnr.low>=original-0.3dB", "--budget", "drop.high<=1"),
)


def _open_report(rng: Random) -> None:
    chance = rng.random()
    if chance < 0.3:
        compared = ("--baseline", "report.json", "--no-worse", "2%") if chance < 0.1 else ()
        written = ("--junit", "out/junit.xml", "--metrics", "out/metrics.txt") if chance < 0.2 else ("--json",)
        command("check", "base.json" if compared else "report.json", *BUDGETS, *compared, *written)
    if chance < 0.31:
        command("report", "report.json", "--out", "out")
    report = read_report(Path("report.json"))
    to_markdown(report)
    print_report(report, Console(file=io.StringIO()))


@kind("report", 10, _open_report)
def _report(seeds: Path, here: Path, rng: Random) -> None:
    shutil.copy(seeds / "report.json", here / "base.json")
    text = (seeds / rng.choice(("report.json", "blind.json", "denoiser.json", "old.json"))).read_text()
    if rng.random() < 0.2:
        (here / "report.json").write_bytes(broken_text(text, rng))
    else:
        made = broken_json(json.loads(text), rng, numbers_alone=rng.random() < 0.4)
        (here / "report.json").write_text(made, "utf-8", "surrogatepass")


def _open_config(rng: Random) -> None:
    text = Path("config.toml").read_bytes().decode("utf-8", "replace")
    now = 'model = "net.pt"\nrate = 0.5\n'
    for change in (first_change(text, now), first_change(now, text)):
        if change:
            raise UsageError(change)


@kind("config.toml", 6, _open_config)
def _config(seeds: Path, here: Path, rng: Random) -> None:
    (here / "config.toml").write_bytes(broken_text((seeds / "config.toml").read_text(), rng))


def _open_pipeline(rng: Random) -> None:
    command("run", "compress.toml", "--dry-run")


@kind("compress.toml", 5, _open_pipeline)
def _pipeline(seeds: Path, here: Path, rng: Random) -> None:
    shutil.copy(seeds / "bare.pt", here / "net.pt")
    (here / "compress.toml").write_bytes(broken_text(PIPELINE, rng))


def _take_up(rng: Random) -> None:
    command("prune", "net.pt", "--arch", ARCH, "--input", "1x8x8", "--rate", "0.5", "--out", "half", "--resume")


@kind("run to resume", 2, _take_up)
def _run_to_take_up(seeds: Path, here: Path, rng: Random) -> None:
    shutil.copy(seeds / "bare.pt", here / "net.pt")
    (here / "half").mkdir()
    shutil.copy(seeds / "report.json", here / "half")
    (here / "half" / "config.toml").write_bytes(broken_text((seeds / "config.toml").read_text(), rng))


def _open_sensitivity(rng: Random) -> None:
    found = read_sensitivity(Path("sensitivity.csv"))
    for curve in found.curves.values():
        curve.at(np.linspace(0, 1, 9))
    assert len(found.ranked) == len(found.curves) and found.measured


@kind("sensitivity.csv", 5, _open_sensitivity)
def _sensitivity(seeds: Path, here: Path, rng: Random) -> None:
    (here / "sensitivity.csv").write_bytes(broken_text((seeds / "sensitivity.csv").read_text(), rng))


def _open_onnx(rng: Random) -> None:
    command("eval", "input.onnx", *rng.choice(((), ("--input", "1x8x8"), ("--json",))))


@kind("ONNX", 4, _open_onnx)
def _onnx(seeds: Path, here: Path, rng: Random) -> None:
    if rng.random() < 0.5:
        (here / "input.onnx").write_bytes(broken((seeds / "net.onnx").read_bytes(), rng))
        return
    model = onnx.load(seeds / "net.onnx")
    change = rng.randrange(6)
    tensor = rng.choice(model.graph.initializer)
    if change == 0:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice([n for n in EXTREMES if -(2**63) <= n < 2**63])
    elif change == 1:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", rng.choice(("/etc/passwd", "../net.py", "net.py", "gone", "/dev/zero"))
        tensor.ClearField("raw_data")
    elif change == 2:
        model.graph.node[0].op_type = rng.choice(
            ("Relu", "Loop", "ConstantOfShape", "X" * 300, "Tile", "RandomNormal", "Resize")
        )
    elif change == 3:
        size = model.graph.input[0].type.tensor_type.shape.dim[rng.randrange(4)]
        size.dim_value = rng.choice((0, 1, -1, 10**5, 10**9, 2**62))
    elif change == 4:
        name = rng.choice([name for name in NAMES if "\ud800" not in name])
        model.graph.input[0].name = name
        model.graph.node[0].input[0] = name
    else:
        size = onnx.numpy_helper.from_array(np.array([10**5, 10**5, 100], np.int64), "size")
        model.graph.initializer.append(size)
        model.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["size"], ["much"]))
        model.graph.output.append(onnx.helper.make_tensor_value_info("much", onnx.TensorProto.FLOAT, None))
    (here / "input.onnx").write_bytes(model.SerializeToString())


def _open_images(rng: Random) -> None:
    data = open_data("imagefolder:images", size=rng.choice((None, None, 8, 96)), channels=rng.choice((None, 1)))
    print(*data.notes)
    for part in data.counts:
        for batch in data.batches(part, batch_size=4, device="cpu"):
            assert batch.inputs.shape[1:] == data.shape


@kind("images", 14, _open_images)
def _images(seeds: Path, here: Path, rng: Random) -> None:
    names = sorted(MODES)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (here / "images" / part / name).mkdir(parents=True)
            shutil.copy(seeds / "images" / "rgb.png", here / "images" / part / name / "0.png")
    chosen = rng.choice(names)
    data = (seeds / "images" / chosen).read_bytes()
    other = (seeds / "images" / rng.choice(names)).read_bytes()
    bomb = rng.random()
    if bomb < 0.06:
        made = io.BytesIO()
        size = rng.choice(((13_400, 13_400), (65_000, 1), (1, 60_000), (9_000, 9_000)))
        Image.new("1", size).save(made, rng.choice(("PNG", "TIFF", "GIF")))
        data = made.getvalue()
    elif bomb < 0.1:
        data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(canary) (w) file closefile\n"
    elif bomb < 0.9:
        data = mutations.broken_image(data, rng) if rng.random() < 0.9 else broken(data, rng, other)
    name = rng.choice((chosen, "1.png", "1.jpg", "1.TIFF", "1.webp"))
    (here / "images" / rng.choice(("train", "test")) / "cat" / name).write_bytes(data)
    if rng.random() < 0.05:
        for way in ("a", "b"):
            (here / "images" / "train" / "cat" / way).symlink_to("..")


def _open_masks(rng: Random) -> None:
    options = rng.choice(
        ("", "", "?ignore=1", "?ignore=0,7", "?ignore=", "?ignore=-3", "?scale=2", "?", "?ignore=99999999999", "?=&")
    )
    kinds = (
        "segmentation:masks",
        "segmentation:masks",
        "masks",
        "pairs:masks",
        "superres:masks/images?scale=2",
        "images:masks",
    )
    spec = rng.choice((*kinds, "denoise:masks/images?sigma=nan", "superres:masks/masks?scale=1e3"))
    settings = {
        "pad_to": rng.choice((1, 1, 32)),
        **rng.choice(({}, {}, {"size": 8, "fit": "letterbox"}, {"fit": "cover", "size": (9, 1)})),
        "tile": rng.choice((None, None, 8, (0, 9))),
        "crop": rng.choice((None, 8)),
        "color": rng.choice((None, "bgr", "grey")),
        "group": rng.choice((None, None, "frames", "(.)", "(", "x")),
        "memory_limit": rng.choice((2**30, 0)),
    }
    data = open_data(spec + options * (spec == kinds[0]), **settings)
    print(*data.notes, *data.classes)
    for part in data.counts:
        for batch in data.batches(part, batch_size=4, device="cpu"):
            assert batch.inputs.shape[1] == data.shape[0] and batch.inputs.isfinite().all()
            assert data.kind != "masks" or IGNORED <= batch.targets.min() <= batch.targets.max() < len(data.classes)


@kind("masks", 8, _open_masks)
def _masks(seeds: Path, here: Path, rng: Random) -> None:
    """Five images with masks, one of which is damaged, or its image, or the names of the classes."""
    other = (seeds / "images" / rng.choice(sorted(MODES))).read_bytes()
    for folder in ("images", "masks"):
        (here / "masks" / folder).mkdir(parents=True)
    for number in range(5):
        image = Image.effect_noise((12, 9), 60)
        image.save(here / "masks" / "images" / f"{number}.png")
        image.point(lambda value: value // 80 % 3).save(here / "masks" / "masks" / f"{number}.png")
    file = here / "masks" / rng.choice(("images", "masks", "masks")) / f"{rng.randrange(5)}.png"
    way = rng.random()
    if way < 0.6:
        data = file.read_bytes()
        file.write_bytes(mutations.broken_image(data, rng) if rng.random() < 0.8 else broken(data, rng, other))
    elif way < 0.75:
        file.write_bytes(other)
    elif way < 0.85:
        file.unlink()
    elif way < 0.9:
        file.rename(file.with_suffix(rng.choice((".jpg", ".txt", ".PNG"))))
    if rng.random() < 0.3:
        names = rng.choice((b"sky\nroad\ncar\n", b"", b"\n\n", b"a\x1b[2Jb\nc\nd", b"\xff\xfe", b"x\n" * 70_000, b"a\n\nb"))
        (here / "masks" / "classes.txt").write_bytes(names)


def _open_fashion(rng: Random) -> None:
    for spec in ("fashionmnist:.", "cifar10:."):
        if Path("FashionMNIST").exists() == spec.startswith("fashion"):
            data = open_data(spec)
            for part in data.counts:
                for batch in data.batches(part, batch_size=8, device="cpu"):
                    assert batch.inputs.shape[1:] == data.shape


@kind("FashionMNIST", 3, _open_fashion)
def _fashion(seeds: Path, here: Path, rng: Random) -> None:
    shutil.copytree(seeds / "FashionMNIST", here / "FashionMNIST")
    file = rng.choice(sorted((here / "FashionMNIST" / "raw").iterdir()))
    file.write_bytes(broken(file.read_bytes(), rng))
    if rng.random() < 0.1:
        processed = here / "FashionMNIST" / "processed"
        processed.mkdir()
        harm = rng.choice((Call(os.mkdir, CANARY), (torch.zeros(3, 28, 28), torch.zeros(3)), 3, (1, 2, 3)))
        for name in ("training.pt", "test.pt"):
            torch.save(harm, processed / name)


@kind("CIFAR", 1, _open_fashion)
def _cifar(seeds: Path, here: Path, rng: Random) -> None:
    shutil.copytree(seeds / "cifar-10-batches-py", here / "cifar-10-batches-py")
    file = rng.choice(sorted((here / "cifar-10-batches-py").iterdir()))
    file.write_bytes(rng.choice((pickle.dumps(Call(os.mkdir, CANARY)), broken(file.read_bytes(), rng))))


# One input ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """The outcome of one input: `status` is the exit status, None if there was none; `fault` is why it is a failure."""

    index: int
    kind: str
    status: int | None
    fault: str
    seconds: float = 0.0
    megabytes: float = 0.0
    told: str = ""  # on standard error


def kind_at(seed: int, index: int) -> str:
    return Random(f"{seed}:{index}:kind").choices(list(KINDS), [share for share, _, _ in KINDS.values()])[0]


def write_input(seeds: Path, here: Path, seed: int, index: int) -> None:
    """Write the input of this index, which depends on nothing else, into the directory `here`."""
    shutil.copy(seeds / "net.py", here)
    KINDS[kind_at(seed, index)][1](seeds, here, Random(f"{seed}:{index}:write"))


def read_input(seed: int, index: int) -> tuple[int | None, str, str]:
    """Read the input in the working directory. Returns the exit status and what was printed on both streams.

    After an unexpected exception, the status is None, and standard error describes the exception.
    """
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            KINDS[kind_at(seed, index)][2](Random(f"{seed}:{index}:read"))
        except Status as ended:
            status = int(str(ended))
        except CompressError as error:
            print(f"error: {error}", file=sys.stderr)
            status = error.exit_code
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            frame = [*frames[:1], *(frame for frame in frames if "/compressor/" in frame.filename)][-1]
            return None, "", f"{type(error).__name__} at {frame.filename}:{frame.lineno}: {str(error)[:150]!r}"
    return status, out.getvalue(), err.getvalue()


def fault_in(status: int | None, out: str, err: str) -> str:
    """Why this exit status and output are a failure; empty if they are not."""
    if status not in (0, 1, 2, 3, 4):
        return f"status {status}: {err[:200]}"
    lines = err.rstrip("\n").split("\n") if err else []
    if status == 0 and lines:
        return f"printed on standard error, but succeeded: {err[:200]!r}"
    usage = bool(lines) and lines[0].startswith("Usage: ")  # a usage error of the command line
    if status > 1 and not usage and (not lines or not lines[0].startswith("error: ") or len(lines) > 2):
        return f"not one or two lines: {err[:300]!r}"
    if len(err) > LETTERS:
        return f"{len(err)} characters"
    if DENIED.search(err) and not err.startswith("error: The ONNX network does not run"):  # it may be any program
        return f"an allocation was denied: {err[:300]!r}"
    for text in (out, err):
        if re.search(r"^\s*::(?!(error|warning|notice) )", text, re.M):
            return f"prints a workflow command: {text[:300]!r}"
        if odd := next((letter for letter in text if not letter.isprintable() and letter != "\n"), None):
            return f"prints {odd!r}: {text[max(0, text.index(odd) - 50) :][:120]!r}"
    return ""


def fault_in_files(place: Path, before: set[str]) -> str:
    """Why the files in a worker's directory are a failure, after an input was read in place/work; empty if they are not."""
    made = sorted(path for path in _paths(place) - before if not f"{path}/".startswith("work/out/"))
    if made or Path(OUTSIDE).exists():
        return f"wrote {made[:3] or OUTSIDE}"
    if said := LIBTIFF.sub("", (place / "native.txt").read_text("utf-8", "backslashreplace")):
        return f"a library printed {said[:200]!r}"
    written = Path("out/junit.xml")
    try:
        if written.exists():
            ElementTree.parse(written)
    except ElementTree.ParseError as error:
        return f"invalid XML: {error}"
    for name in ("output", "metrics.txt"):  # of `compress check`: an injected line would be a metric
        lines = Path(f"out/{name}").read_text().splitlines() if Path(f"out/{name}").exists() else []
        if odd := next((line for line in lines if not re.match(r"[\w-]+(=|\{| )|# ", line)), None):
            return f"{name} has the line {odd[:100]!r}"
    return ""


def _paths(place: Path) -> set[str]:
    found = (Path(folder, name) for folder, folders, files in os.walk(place) for name in (*folders, *files))
    return {str(path.relative_to(place)) for path in found}


# Workers --------------------------------------------------------------------------------------------------------------


def work(seeds: Path, place: Path, seed: int, indices: Sequence[int], pipe: Connection) -> None:
    """Read one input after another in place/work, and send each outcome."""
    here, said = place / "work", place / "native.txt"
    place.mkdir(exist_ok=True)
    _restrict(said)
    for index in indices:
        os.truncate(said, 0)
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        os.chdir(here)
        write_input(seeds, here, seed, index)
        Path("out").mkdir()
        before = _paths(place)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        with contextlib.suppress(OSError):  # if the peak cannot be reset, it is the highest so far
            Path("/proc/self/clear_refs").write_text("5")
        low, began = _memory("VmRSS"), time.process_time()
        status, out, err = read_input(seed, index)
        seconds, peak = time.process_time() - began, _memory("VmHWM") - low
        faulthandler.cancel_dump_traceback_later()
        fault = fault_in(status, out, err) or fault_in_files(place, before)
        if not fault and seconds > SECONDS:
            fault = f"took {seconds:.0f} s"
        pipe.send(Outcome(index, kind_at(seed, index), status, fault, seconds, peak / 1e6, err))


def _restrict(said: Path) -> None:
    """Limit this process's memory, redirect the output of native libraries to the file `said`, and pretend to run in CI."""
    native = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(native, 1)
    os.dup2(native, 2)
    limit = _memory("VmSize") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.update({"GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": "out/output", "GITHUB_STEP_SUMMARY": "out/summary"})
    real = latency.take_turns
    latency.take_turns = lambda *a, seconds, **k: real(*a, **k, seconds=0.0)  # values are not checked


def _memory(name: str) -> int:
    """A memory value of this process, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def run(seed: int, indices: Sequence[int], workers: int, folder: Path) -> list[Outcome]:
    """The outcome of every input, read by forked workers; one that dies is replaced."""
    fork = multiprocessing.get_context("fork")
    seeds = folder / "seeds"
    seeds.mkdir()
    maker = fork.Process(target=write_seeds, args=(seeds,))  # here, it would leave threads that do not survive a fork
    maker.start()
    maker.join()
    assert maker.exitcode == 0, "the valid files could not be made"
    gc.freeze()  # else most of the time is spent collecting what the parent imported
    left = [deque(indices[number::workers]) for number in range(workers)]
    running: dict[Any, tuple[int, Any]] = {}
    outcomes: list[Outcome] = []

    def start(number: int) -> None:
        ours, theirs = fork.Pipe(duplex=False)
        worker = fork.Process(target=work, args=(seeds, folder / f"worker-{number}", seed, list(left[number]), theirs))
        worker.start()
        theirs.close()
        running[ours] = number, worker

    for number in range(workers):
        start(number)
    while running:
        for pipe in wait(list(running)):
            number, worker = running[pipe]
            try:
                outcomes.append(pipe.recv())
                left[number].popleft()
            except EOFError:
                del running[pipe]
                worker.join()
                if left[number]:
                    lost, said = (
                        left[number].popleft(),
                        (folder / f"worker-{number}" / "native.txt").read_text("utf-8", "replace"),
                    )
                    fault = f"the process ended with {worker.exitcode}: {said[-400:]!r}"
                    outcomes.append(Outcome(lost, kind_at(seed, lost), None, fault))
                if left[number]:
                    start(number)
    gc.unfreeze()
    return sorted(outcomes, key=lambda outcome: outcome.index)


# Summary --------------------------------------------------------------------------------------------------------------


def table(outcomes: Sequence[Outcome]) -> str:
    """One row per kind: the number of inputs by outcome, and the longest time and largest memory of one input."""
    ends = {0: "accepted", 1: "budget missed", 2: "refused", 3: "infeasible", 4: "check failed", None: "failures"}
    rows = [("kind", "inputs", *(f"{name} ({end})" if end else name for end, name in ends.items()), "longest, s", "most, MB")]
    for kind in (*KINDS, "all"):
        own = [outcome for outcome in outcomes if kind in (outcome.kind, "all")]
        ended = Counter(None if outcome.fault else outcome.status for outcome in own)
        seconds, most = (max((getattr(o, figure) for o in own), default=0.0) for figure in ("seconds", "megabytes"))
        rows.append((kind, str(len(own)), *(str(ended[end]) for end in ends), f"{seconds:.1f}", f"{most:.0f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join(
        "  ".join([next(line)[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in line)]) for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, help="the index of one input")
    parser.add_argument("--keep", type=Path, help="directory to keep that input in")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    indices = range(asked.inputs) if asked.only is None else [asked.only]
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(asked.seed, indices, min(asked.workers, len(indices)), Path(folder))
        if asked.keep is not None:
            shutil.copytree(Path(folder) / "worker-0" / "work", asked.keep, symlinks=True)
    failures = [outcome for outcome in outcomes if outcome.fault]
    if asked.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes]))
        return bool(failures)
    for outcome in failures:
        print(f"{outcome.kind}, --seed {asked.seed} --only {outcome.index}: {outcome.fault}")
    print(table(outcomes) if asked.only is None else outcomes[0])
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
