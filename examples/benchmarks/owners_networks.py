"""Public checkpoints with their owners' own code, through every command that needs no data.

Each network is inspected, pruned by half, factored by 30 %, and exported, with the code of the repository that published it and
without a change to that code. The ONNX files are then compared with PyTorch at two batch sizes, and at two image sizes if the
network is fully convolutional, on inputs of the range that the network was trained on.

    python examples/benchmarks/owners_networks.py --checkpoints shared/checkpoints --repositories ~/theirs
    python docs/generate.py

The checkpoints and the repositories are not part of this project. Clone those of the table below, each into a folder of its own
name: `git clone https://github.com/sacmehta/ESPNet ~/theirs/ESPNet`.

A network has a process of its own, with a time limit. The file of results is written after each of them; a network that it
contains is skipped, unless it is named by --only.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import fnmatch
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
PACKAGES = ("compressor", "torch", "torchvision", "onnx", "onnxruntime-gpu")
PRUNE, LOWRANK = 0.5, 0.3  # shares of the MACs to remove
BATCHES = 1, 3
NEEDS = {"batches": "export", "sizes": "prune"}  # without these, there is nothing to compare
TOLERANCE = 1e-3  # on inputs of the network's own range, in float32
FRAME = " │╭╮╰╯─"  # around messages about wrong options
STUB = "def __getattr__(name):\n    return lambda *args, **kwargs: None\n"
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A checkpoint, the code that builds its network, and its inputs."""

    file: str  # of the checkpoint
    task: str
    repository: str
    arch: str
    shape: tuple[int, int, int]
    span: tuple[float, float]  # smallest and largest value of an input
    other: tuple[int, int] | None = None  # a second height and width, if the network is fully convolutional
    args: Mapping[str, object] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    folder: str = "."  # of the repository, from which the code is imported
    cut_out: tuple[str, ...] = ()  # the classes to use of a file that is a whole program
    stubs: tuple[str, ...] = ()  # packages that the code imports and the network does not use

    @property
    def name(self) -> str:
        return Path(self.file).stem

    @property
    def constants(self) -> dict[str, object]:
        """Arguments of its `forward` besides the image."""
        given = [word for flag, word in zip(self.options, self.options[1:], strict=False) if flag == "--constant"]
        return {name: ast.literal_eval(value) for name, _, value in (word.partition("=") for word in given)}


RETINAFACE = {
    "name": "mobilenet0.25", "pretrain": False, "return_layers": {"stage1": 1, "stage2": 2, "stage3": 3},
    "in_channel": 32, "out_channel": 64,
}  # fmt: skip
FACES = (-123.0, 151.0)  # 0 to 255 minus the mean of each channel
ESPNET = "sacmehta/ESPNet"
MTCNN = "timesler/facenet-pytorch"
LANDMARKS = "biubug6/Face-Detector-1MB-with-landmark"
PORTRAITS = "clovaai/ext_portrait_segmentation"
RESTORED = "ofsoundof/NTIRE2022_ESR"
PROGRAM = ("PatchEmbedding", "VisionTransformer", "HybridCNNMLP")
CASES = [
    Case("segmentation/espnet_p_2_q_8_camvid.pth", "segmentation", ESPNET, "Model:ESPNet", (3, 96, 128), (-0.01, 0.01),
         (64, 160), {"classes": 12, "p": 2, "q": 8}, folder="train"),
    Case("segmentation/espnet_p_2_q_8.pth", "segmentation", ESPNET, "Model:ESPNet", (3, 96, 128), (-0.01, 0.02),
         (64, 160), {"classes": 20, "p": 2, "q": 8}, folder="test"),
    Case("segmentation/SINet.pth", "segmentation", PORTRAITS, "models.SINet:Dnc_SINet", (3, 224, 224), (-2, 2),
         (160, 256), {"classes": 2, "p": 2, "q": 8, "chnn": 1}),
    Case("segmentation/ExtremeC3.pth", "segmentation", PORTRAITS, "models.extremeC3:ExtremeC3Net", (3, 224, 224), (-2, 2),
         (160, 256), {"classes": 1, "p": 1, "q": 5}),
    Case("segmentation/lwnet_drive.pth", "segmentation", "agaldran/lwnet", "models.get_model:get_arch", (3, 128, 128), (0, 1),
         (96, 160), {"model_name": "wnet"}),
    Case("detection/yolo-fastestv2-coco.pth", "detection", "dog-qiuqiu/Yolo-FastestV2", "model.detector:Detector",
         (3, 352, 352), (0, 1), (256, 320), {"classes": 80, "anchor_num": 3, "load_param": True}, stubs=("torchsummary",)),
    Case("detection/RBF_Final.pth", "detection", LANDMARKS, "models.net_rfb:RFB", (3, 240, 320), FACES, (160, 256),
         {"cfg": {}, "phase": "test"}),
    Case("detection/mobilenet0.25_Final.pth", "detection", LANDMARKS, "models.retinaface:RetinaFace", (3, 240, 320), FACES,
         (160, 256), {"cfg": RETINAFACE, "phase": "test"}),
    Case("detection/version-RFB-320.pth", "detection", "Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB",
         "vision.ssd.mb_tiny_RFB_fd:create_Mb_Tiny_RFB_fd", (3, 240, 320), (-1, 1), (160, 256),
         {"num_classes": 2, "device": "cpu"}, stubs=("cv2",)),
    Case("detection/blazeface.pth", "detection", "hollance/BlazeFace-PyTorch", "blazeface:BlazeFace", (3, 128, 128), (-1, 1),
         (96, 160)),
    Case("detection/pnet.pt", "detection", MTCNN, "models.mtcnn:PNet", (3, 48, 64), (-1, 1), (32, 40), {"pretrained": False}),
    Case("detection/rnet.pt", "detection", MTCNN, "models.mtcnn:RNet", (3, 24, 24), (-1, 1), None, {"pretrained": False}),
    Case("detection/onet.pt", "detection", MTCNN, "models.mtcnn:ONet", (3, 48, 48), (-1, 1), None, {"pretrained": False}),
    Case("classification/2.7_80x80_MiniFASNetV2.pth", "classification", "minivision-ai/Silent-Face-Anti-Spoofing",
         "src.model_lib.MiniFASNet:MiniFASNetV2", (3, 80, 80), (0, 255), None, {"conv6_kernel": (5, 5)}),
    Case("classification/fer2013_mini_xception.t7", "classification", "yoshidan/pytorch-facial-expression-recognition",
         "model:Model", (1, 48, 48), (0, 1), (64, 80), {"num_classes": 7}, folder="src"),
    Case("classification/mnist_cnn.pt", "classification", "mary-0830/mnist-pytorch", "test.py:pytorch_CNNet", (1, 28, 28),
         (-0.42, 2.82), cut_out=("pytorch_CNNet",)),
    Case("classification/vit_cifar10.pth", "classification", "smmk47/CIFAR10-Classification", "app.py:VisionTransformer",
         (3, 32, 32), (-2.4, 2.8), cut_out=PROGRAM),
    Case("classification/hybrid_cifar10.pth", "classification", "smmk47/CIFAR10-Classification", "app.py:HybridCNNMLP",
         (3, 32, 32), (-2.4, 2.8), (40, 64), cut_out=PROGRAM),
    Case("superres/IMDN_x2.pth", "super-resolution", "Zheng222/IMDN", "model.architecture:IMDN", (3, 32, 32), (0, 1), (24, 40),
         {"upscale": 2}),
    Case("superres/model_RTC.pth", "super-resolution", "Zheng222/IMDN", "model.architecture:IMDN_RTC", (3, 32, 32), (0, 1),
         (24, 40), {"upscale": 2}),
    Case("superres/RFDN_AIM.pth", "super-resolution", "njulj/RFDN", "RFDN:RFDN", (3, 32, 32), (0, 255), (24, 40)),
    Case("superres/carn_m.pth", "super-resolution", "nmhkahn/CARN-pytorch", "model.carn_m:Net", (3, 32, 32), (0, 1), (24, 40),
         {"multi_scale": True, "group": 4}, options=("--constant", "scale=2"), folder="carn"),
    Case("superres/team01_efdn.pth", "super-resolution", RESTORED, "models.team01_efdn:EFDN", (3, 32, 32), (0, 1), (24, 40)),
    Case("superres/team03_fmen.pth", "super-resolution", RESTORED, "models.team03_fmen:FMEN", (3, 32, 32), (0, 255), (24, 40)),
    Case("superres/team04_rlfn.pth", "super-resolution", RESTORED, "models.team04_rlfn:RLFN_cut", (3, 32, 32), (0, 255),
         (24, 40)),
    Case("restore/zerodce_epoch99.pth", "restoration", "Li-Chongyi/Zero-DCE", "model:enhance_net_nopool", (3, 32, 48), (0, 1),
         (24, 40), folder="Zero-DCE_code"),
    Case("restore/dncnn_s25.pth", "restoration", "SaoYan/DnCNN-PyTorch", "models:DnCNN", (1, 32, 32), (0, 1), (24, 40),
         {"channels": 1}),
    Case("style/candy.pth", "style transfer", "mmalotin/pytorch-fast-neural-style-mobilenetV2",
         "fnst_modules:TransformerMobileNet", (3, 64, 64), (0, 255), (48, 80)),
]  # fmt: skip


def blank(case: Case) -> Row:
    """The row of a network before the first step."""
    facts = {name: getattr(case, name) for name in ("name", "task", "repository", "file")}
    return {**facts, "size": sizes(case.shape[1:]), "passed": [], "failed": {}}


# The process of one network -------------------------------------------------------------------------------------------


class Failed(Exception):
    """A command of ours ended with an error, which it told; or ONNX and PyTorch differ."""


def work(case: Case, checkpoint: Path, repository: Path, out: Path) -> None:
    """All steps of one network; `out` is written after each."""
    sys.path.remove(str(HERE.parent))  # files of ours there must not be taken for theirs
    row = blank(case)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arch = prepare(case, repository, folder)
        os.chdir(folder if case.cut_out else repository / case.folder)
        spans = ("--input-range", ",".join(map(str, case.span)))
        common = [str(checkpoint), "--arch", arch, "--input", sizes(case.shape), *case.options]
        for key, value in case.args.items():
            common += ["--arch-arg", f"{key}={value!r}"]
        runs = {"pruned": ("prune", PRUNE), "factored": ("lowrank", LOWRANK)}
        steps: dict[str, Callable[[], Row]] = {"inspect": lambda: inspected(common)}
        for way, (command, rate) in runs.items():
            steps[command] = lambda command=command, way=way, rate=rate: compressed(
                [command, *common, *known(command, spans), "--rate", str(rate), "--epochs", "0", "--out", str(folder / way)],
                folder / way,
            )
        steps["export"] = lambda: exported([*common, *known("export", spans)], folder)
        steps["batches"] = lambda: {"differences": batches(case, folder, checkpoint, arch)}
        if case.other:
            steps["sizes"] = lambda: {"differences": other_size(case, folder, spans)}
        for step, run in steps.items():
            if NEEDS.get(step, step) in row["failed"]:
                continue
            began = time.monotonic()
            try:
                found = run()
                row["passed"].append(step)
            except Failed as error:
                found, row["failed"][step] = {}, str(error)
            except Exception as error:
                found, row["failed"][step] = {}, f"internal error: {type(error).__name__}: {error}"
                traceback.print_exc()
            row[step] = {**found, "seconds": round(time.monotonic() - began, 1)}
            out.write_text(json.dumps(row), encoding="utf-8")


def prepare(case: Case, repository: Path, folder: Path) -> str:
    """What --arch is given. Imports that are missing are replaced, and classes cut out of programs, in `folder`."""
    stubs = folder / "stubs"
    stubs.mkdir()
    for name in case.stubs:
        (stubs / f"{name}.py").write_text(STUB, encoding="utf-8")
    sys.path.append(str(stubs))
    if not case.cut_out:
        return case.arch
    file, _, name = case.arch.partition(":")
    code = ast.parse((repository / case.folder / file).read_text(encoding="utf-8"))
    classes = [node for node in code.body if isinstance(node, ast.ClassDef) and node.name in case.cut_out]
    imports = "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\nfrom collections import OrderedDict\n"
    (folder / "network.py").write_text(imports + "\n".join(map(ast.unparse, classes)), encoding="utf-8")
    return f"network.py:{name}"


def sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def compress(*words: str) -> str:
    """Run a command of ours in this process; what it prints. Raises Failed with what it told."""
    from compressor.cli import app

    told, heard = io.StringIO(), io.StringIO()
    status: object = 0
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(heard):
        try:
            app([*words])
        except SystemExit as end:
            status = end.code
    if status:
        lines = [text for line in heard.getvalue().splitlines() if (text := line.strip(FRAME))]
        raise Failed(" ".join(lines[-2:]).removeprefix("error: ") or f"status {status}")
    return told.getvalue()


def known(command: str, words: tuple[str, ...]) -> tuple[str, ...]:
    """The words, if the command has such an option."""
    return words if words[0] in helped(command) else ()


def helped(command: str, seen: dict[str, str] = {}) -> str:  # noqa: B006  # help is asked for once
    if command not in seen:
        seen[command] = compress(command, "--help-all" if command in ("prune", "lowrank") else "--help")
    return seen[command]


def inspected(common: list[str]) -> Row:
    view = json.loads(compress("inspect", *common, "--json"))
    return {
        "macs": view["macs"],
        "params": view["params"],
        "groups": len(view["groups"]),
        "unknown": view["unknown_operators"],
        "smallest": view["smallest"]["macs"],
    }


def compressed(words: list[str], run: Path) -> Row:
    compress(*words, "--quiet")
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    before, after = report["baseline"], report["compressed"]
    return {key: after[key] for key in ("macs", "params")} | {"removed": 1 - after["macs"] / before["macs"]}


def exported(words: list[str], folder: Path) -> Row:
    compress("export", *words, "--quiet", "--out", str(folder / "original.onnx"))
    return {}


def batches(case: Case, folder: Path, checkpoint: Path, arch: str) -> Row:
    """The differences of each file at each batch size, on inputs of the network's own range."""
    from compressor.checkpoint import load

    found = {}
    original = load(checkpoint, arch=arch, arch_args=dict(case.args))
    for name, file in files(folder).items():
        model = original if name == "original" else load(file.parent)
        for batch in BATCHES:
            found[f"{name}, batch {batch}"] = compare(model, file, (batch, *case.shape), case.span, case.constants)
    return found


def files(folder: Path) -> dict[str, Path]:
    """Of those networks that were written."""
    paths = {
        "original": folder / "original.onnx",
        "pruned": folder / "pruned/model.onnx",
        "factored": folder / "factored/model.onnx",
    }
    return {name: path for name, path in paths.items() if path.exists()}


def other_size(case: Case, folder: Path, spans: tuple[str, ...]) -> Row:
    """The pruned network at two image sizes: in one file, if the export can keep height and width dynamic."""
    from compressor.checkpoint import load

    assert case.other is not None
    run = folder / "pruned"
    found, model = {}, load(run)
    dynamic = known("export", ("--dynamic", "height,width"))
    shape, (height, width) = case.shape, case.other
    exported = sizes(shape if dynamic else (shape[0], height, width))
    words = [str(run), "--input", exported, *case.options, *known("export", spans), *dynamic, "--quiet"]
    file = run / "second.onnx"
    compress("export", *words, "--out", str(file))
    for side in (shape[1:], (height, width)) if dynamic else ((height, width),):
        found[f"pruned, {sizes(side)}"] = compare(model, file, (2, shape[0], *side), case.span, case.constants)
    return found


def compare(
    model: Any, file: Path, shape: tuple[int, ...], span: tuple[float, float], constants: Mapping[str, object]
) -> float:
    """The largest difference between ONNX Runtime and PyTorch, relative to the largest output. Raises Failed."""
    import onnxruntime
    import torch

    from compressor.network.outputs import main_first

    low, high = span
    images = low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        made = main_first(model.eval()(images, **constants))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())
    answers = [torch.from_numpy(array) for array in session.run(None, {name: images.numpy()})]
    if [tensor.shape for tensor in made] != [tensor.shape for tensor in answers]:
        raise Failed(f"{file.name} returns {[tuple(t.shape) for t in answers]}, PyTorch {[tuple(t.shape) for t in made]}")
    gaps = [float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in zip(answers, made, strict=True)]
    if not max(gaps) <= TOLERANCE:
        with torch.inference_mode():
            exact = main_first(copy.deepcopy(model).double()(images.double(), **constants))
        own = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in zip(made, exact, strict=True))
        raise Failed(
            f"{file.parent.name}/{file.name} differs from PyTorch by {max(gaps):.1e} for inputs of {sizes(shape)}, "
            f"and PyTorch in float32 from float64 by {own:.1e}"
        )
    return max(gaps)


# The process that waits -----------------------------------------------------------------------------------------------


def measure(case: Case, options: argparse.Namespace) -> Row:
    """The row of one network: what its process wrote until it ended or was stopped."""
    repository = options.repositories / case.repository.partition("/")[2]
    row = blank(case)
    for path in (repository / case.folder, options.checkpoints / case.file):
        if not path.exists():
            return {**row, "failed": {"start": f"there is no {path.name}"}}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        words = [sys.executable, str(HERE), "--one", case.file, "--out", str(out)]
        words += ["--checkpoints", str(options.checkpoints), "--repositories", str(options.repositories)]
        why = ""
        try:
            done = subprocess.run(words, timeout=options.limit, capture_output=not options.verbose, text=True, check=False)
            why = f"its process ended with status {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            why = f"stopped after {options.limit:g} s"
        if out.exists():
            row = json.loads(out.read_text(encoding="utf-8"))
        if why:
            row["failed"]["process"] = why
    return row


def read(path: Path) -> dict[str, Row]:
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return {row["file"]: row for row in rows}


def record(path: Path, rows: Mapping[str, Row]) -> None:
    """Write the rows, in the order of the cases."""
    figures = {
        "command": "python examples/benchmarks/owners_networks.py",
        "machine": {"cores": os.cpu_count(), "threads": 1},
        "asked": {"prune": PRUNE, "lowrank": LOWRANK},
        "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}},
        "rows": [rows[case.file] for case in CASES if case.file in rows],
    }
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    shutil.move(unfinished, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkpoints", type=Path, required=True, help="the folder of the checkpoints")
    parser.add_argument("--repositories", type=Path, required=True, help="the folder of the owners' repositories")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="names of networks to measure, again if need be")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="for one network")
    parser.add_argument("--out", type=Path, default=HERE.with_suffix(".json"))
    parser.add_argument("--verbose", action="store_true", help="show what the processes print")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.checkpoints, options.repositories = options.checkpoints.resolve(), options.repositories.resolve()
    if options.one:
        case = next(case for case in CASES if case.file == options.one)
        repository = options.repositories / case.repository.partition("/")[2]
        work(case, options.checkpoints / case.file, repository, options.out.resolve())
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = read(options.out)
    for case in CASES:
        if any(fnmatch.fnmatch(case.name, pattern) for pattern in options.only) if options.only else case.file not in rows:
            rows[case.file] = row = measure(case, options)
            record(options.out, rows)
            print(line(row), flush=True)
    print(f"{sum(not row['failed'] for row in rows.values())} of {len(rows)} whole")


def line(row: Row) -> str:
    removed = [
        f"{command} -{row[command]['removed']:.1%}" for command in ("prune", "lowrank") if "removed" in row.get(command, {})
    ]
    seconds = sum(row[step]["seconds"] for step in row if isinstance(row[step], dict) and "seconds" in row[step])
    faults = [f"{step}: {why}" for step, why in row["failed"].items()]
    return f"{row['name']:28} {seconds:5.0f} s  {'  '.join(removed):34} {'; '.join(faults)}"


if __name__ == "__main__":
    main()
