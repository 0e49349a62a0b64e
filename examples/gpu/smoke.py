"""Every command of `compress` on the GPU: each case is a run of seconds, in a process of its own.

A case fails when its command does, and when the GPU computed something else than the CPU. An export to ONNX takes longer than
most cases, and is the same on every device: those that are not about ONNX give `--no-onnx`. `torch.compile` is no part of
`compress`; latency.py compiles what it leaves.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rows import Value
from setting import DIGITS_NET, RESNET20, ROOT, VGG, Setting, Unavailable, measurement, parse

from compressor.checkpoint import load
from compressor.cli import app
from compressor.data import open_data
from compressor.errors import UsageError
from compressor.onnx.runtime import onnx_predict
from compressor.report import Report, named, read_report

Case = Callable[[Setting, Path], dict[str, Value]]
CASES: dict[str, Case] = {}
SECONDS_TO_KILL = 60


def case(function: Case) -> Case:
    CASES[function.__name__.replace("_", " ")] = function
    return function


def compress(*arguments: object) -> None:
    """Run a command in this process, so that its GPU memory can be measured. Raises what it raises."""
    status = app([str(argument) for argument in arguments], standalone_mode=False)
    if isinstance(status, int) and status:
        raise RuntimeError(f"exit status {status}")


def on_digits(setting: Setting) -> list[object]:
    return ["--arch", DIGITS_NET, *arch_args(setting), "--data", "digits", "--device", setting.device, "--quiet"]


def arch_args(setting: Setting) -> list[object]:
    return ["--arch-arg", "width=8"] if setting.tiny else []


def on_images(setting: Setting) -> list[object]:
    return ["--arch", f"{RESNET20}:resnet20", "--data", f"imagefolder:{setting.small}", "--device", setting.device, "--quiet"]


def measured(report: Report) -> dict[str, Value]:
    before, after = report.baseline, report.compressed
    values: dict[str, Value] = {"device": report.device, "macs_left": after.macs / before.macs}
    if (first := named(before.scores, "top1")) and (last := named(after.scores, "top1")):
        values |= {"top1_before": first.value, "top1_after": last.value, "n": last.n}
    if report.epochs:
        values["images_per_s"] = round(report.epochs[-1].images_per_second, 1)
    return values


def train(setting: Setting, out: Path, command: str, *further: object, images: bool = False, rate=0.5, onnx=False):
    """One command that trains, on digits or on a ResNet-20's images, and what it reports."""
    model, options = (setting.resnet20, on_images(setting)) if images else (setting.digits, on_digits(setting))
    first = ["--teacher", model] if command == "distill" else [model, "--rate", rate]
    first += [] if onnx else ["--no-onnx"]
    compress(command, *first, *options, "--epochs", 1 if images or setting.tiny else 2, "--out", out, *further)
    return measured(read_report(out))


def too_much(setting: Setting) -> None:
    if setting.tiny:
        raise Unavailable("more than a tiny run has time for")


def need_gpu(setting: Setting) -> None:
    if not setting.on_gpu:
        raise Unavailable("needs a GPU")


# Precision and layout -------------------------------------------------------------------------------------------------


@case
def prune_pgmpf_fp32(setting: Setting, out: Path) -> dict[str, Value]:
    return train(setting, out, "prune", "--method", "pgmpf", "--amp", "none", "--no-channels-last")


@case
def prune_srfp_bf16(setting: Setting, out: Path) -> dict[str, Value]:
    return train(setting, out, "prune", "--method", "srfp", "--amp", "bf16", "--channels-last")


@case
def prune_pgmpf_fp16(setting: Setting, out: Path) -> dict[str, Value]:
    need_gpu(setting)  # fp16 is refused on a CPU
    return train(setting, out, "prune", "--method", "pgmpf", "--amp", "fp16")


@case
def prune_ema_accumulate_adamw(setting: Setting, out: Path) -> dict[str, Value]:
    further = ["--optimizer", "adamw", "--ema-decay", 0.9, "--accumulate", 2, "--cutout", 0.25]
    return train(setting, out, "prune", "--method", "magnitude", *further)


@case
def prune_taylor(setting: Setting, out: Path) -> dict[str, Value]:
    too_much(setting)
    return train(setting, out, "prune", "--method", "taylor")


@case
def resnet20_pgmpf(setting: Setting, out: Path) -> dict[str, Value]:
    too_much(setting)
    return train(setting, out, "prune", "--method", "pgmpf", "--residual", "scatter", images=True)


@case
def resnet20_srfp_streamed(setting: Setting, out: Path) -> dict[str, Value]:
    """Batches from worker processes, by way of pinned memory."""
    data = open_data(f"imagefolder:{setting.small}", memory_limit=0, workers=2)
    batches = list(data.batches("train", batch_size=16, device=torch.device(setting.device), epoch=0, seed=0, augment=True))
    kept = open_data(f"imagefolder:{setting.small}")
    for split in ("held_out", "test"):
        pairs = zip(
            data.batches(split, batch_size=16, device=torch.device(setting.device)),
            kept.batches(split, batch_size=16, device=torch.device("cpu")),
            strict=True,
        )
        if not all(torch.allclose(one.inputs.cpu(), other.inputs, atol=1e-5) for one, other in pairs):
            raise AssertionError(f"{split}: streamed images differ from those in memory")
    found = {} if setting.tiny else train(setting, out, "prune", "--method", "srfp", images=True)
    return {"batches": len(batches)} | found


# Low rank, distillation, quantization ---------------------------------------------------------------------------------


@case
def lowrank_ger(setting: Setting, out: Path) -> dict[str, Value]:
    """On the fully-connected layers of a VGG: it factors no others."""
    network = ["--arch", f"{VGG}:VGG", *(f"--arch-arg={name}={value}" for name, value in setting.vgg_arguments.items())]
    goal = ["--method", "ger", "--target", "params=50%", "--epochs", 1]
    compress("lowrank", setting.vgg, *network, *on_images(setting)[2:], *goal, "--out", out)
    return measured(read_report(out))


@case
def lowrank_espace(setting: Setting, out: Path) -> dict[str, Value]:
    return train(setting, out, "lowrank", "--method", "espace", "--set", "only_if_faster=false", rate=0.3)


@case
def lowrank_cp(setting: Setting, out: Path) -> dict[str, Value]:
    too_much(setting)
    return train(setting, out, "lowrank", "--method", "cp")


@case
def distill_kd(setting: Setting, out: Path) -> dict[str, Value]:
    return train(setting, out, "distill", "--method", "kd")


@case
def distill_hsakd(setting: Setting, out: Path) -> dict[str, Value]:
    return train(setting, out, "distill", "--method", "hsakd")


@case
def distill_mcl_okd(setting: Setting, out: Path) -> dict[str, Value]:
    """Its memory bank is on the GPU. Online distillation has no teacher."""
    options = [{"--arch": "--student-arch", "--arch-arg": "--student-arch-arg"}.get(str(o), o) for o in on_digits(setting)]
    compress("distill", "--model", setting.digits, *options, "--method", "mcl_okd", "--epochs", 1, "--no-onnx", "--out", out)
    return measured(read_report(out))


@case
def resnet20_hsakd(setting: Setting, out: Path) -> dict[str, Value]:
    too_much(setting)
    return train(setting, out, "distill", "--method", "hsakd", images=True)


@case
def quantize(setting: Setting, out: Path) -> dict[str, Value]:
    compress("quantize", setting.digits, *on_digits(setting), "--out", out)
    return measured(read_report(out))


# The other commands ---------------------------------------------------------------------------------------------------


@case
def sensitivity(setting: Setting, out: Path) -> dict[str, Value]:
    options = on_digits(setting)
    compress("sensitivity", setting.digits, *options, "--out", out / "table.json")
    return {"bytes": (out / "table.json").stat().st_size}


@case
def compare(setting: Setting, out: Path) -> dict[str, Value]:
    grid = ["--methods", "magnitude", "--rates", 0.5, "--epochs", 1, "--no-onnx", "--no-dense" if setting.tiny else "--dense"]
    compress("compare", setting.digits, *on_digits(setting), *grid, "--out", out)
    return {"runs": len(list(out.glob("*/report.json")))}


@case
def run_a_pipeline(setting: Setting, out: Path) -> dict[str, Value]:
    out.mkdir(parents=True)
    quantized = [] if setting.tiny else ['quantize"']
    steps = ['prune"\nrate = 0.3', 'lowrank"\nrate = 0.3', *quantized, 'check"\nbudget = ["macs<=90%"]']
    width = 'arch-arg = ["width=8"]\n' if setting.tiny else ""
    (out / "compress.toml").write_text(
        f'model = "{setting.digits}"\narch = "{DIGITS_NET}"\n{width}data = "digits"\ndevice = "{setting.device}"\nepochs = 1\n'
        "onnx = false\n"  # but for the step that quantizes the file
        f'[run]\nout = "{out}/all"\n' + "".join(f'[[steps]]\ndo = "{step}\n' for step in steps)
    )
    compress("run", out / "compress.toml", "--quiet")
    return measured(read_report(out / "all"))


@case
def evaluate_and_export(setting: Setting, out: Path) -> dict[str, Value]:
    train(setting, out / "run", "prune", "--method", "magnitude", onnx=True)
    compress("inspect", out / "run")
    compress("eval", out / "run", "--data", "digits", "--device", setting.device)
    compress("export", out / "run", "--out", out / "again.onnx")
    compress("check", out / "run", "--budget", "macs<=60%")
    return measured(read_report(out / "run"))


@case
def demo(setting: Setting, out: Path) -> dict[str, Value]:
    too_much(setting)
    compress("demo", "--out", out)
    return measured(read_report(out / "half"))


# The GPU against the CPU, an interruption, one process of several -----------------------------------------------------


@case
def same_result_as_the_cpu(setting: Setting, out: Path) -> dict[str, Value]:
    """Without training, the same channels go on both, and the pruned networks compute the same."""
    networks, kept = [], []
    for name, device in (("here", setting.device), ("there", "cpu")):
        options = ["--arch", DIGITS_NET, *arch_args(setting), "--data", "digits", "--device", device, "--quiet"]
        compress("prune", setting.digits, *options, "--rate", 0.5, "--epochs", 0, "--no-onnx", "--out", out / name)
        networks.append(load(out / name))
        kept.append(json.loads((out / name / "plan.json").read_text())["steps"])
    images = next(iter(open_data("digits").batches("test", batch_size=100, device=torch.device("cpu")))).inputs
    with torch.inference_mode():
        here, there = (network(images) for network in networks)
        on_device = networks[0].to(setting.device)(images.to(setting.device)).cpu()
    if kept[0] != kept[1]:
        raise AssertionError("other channels are kept than on the CPU")
    largest = float(there.abs().max())
    return {
        "largest_difference_of_the_networks": float((here - there).abs().max()) / largest,
        "largest_difference_on_the_gpu": float((on_device - here).abs().max()) / largest,
    }


@case
def resume_after_a_kill(setting: Setting, out: Path) -> dict[str, Value]:
    """Killed after its first epoch and resumed, against the same run left alone: the same network, bit for bit on a CPU."""
    epochs = 3
    arguments = [
        "prune",
        setting.digits,
        *on_digits(setting),
        "--rate",
        0.5,
        "--method",
        "srfp",
        "--epochs",
        epochs,
        "--no-onnx",
    ]
    command = [sys.executable, "-m", "compressor", *map(str, arguments), "--out", str(out / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True)
    began = time.monotonic()
    while not list((out / "killed/state").glob("training*")) and process.poll() is None:
        if time.monotonic() - began > SECONDS_TO_KILL:
            break
        time.sleep(0.02)
    was_running = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL) if was_running else None
    process.wait()
    subprocess.run([*command, "--resume"], check=True, capture_output=True, timeout=300) if was_running else None
    compress(*arguments, "--out", out / "whole")
    one, other = (load(out / name).state_dict() for name in ("killed", "whole"))
    if {name: tensor.shape for name, tensor in one.items()} != {name: tensor.shape for name, tensor in other.items()}:
        raise AssertionError("the resumed run kept other widths than the one left alone")
    return {
        "was_running_when_killed": was_running,
        "epochs": len(read_report(out / "killed").epochs),
        "largest_difference": max(float((one[name] - other[name]).abs().max()) for name in one),
    }


@case
def one_process_of_several(setting: Setting, out: Path) -> dict[str, Value]:
    """`torchrun` with one process: NCCL on a GPU, Gloo on a CPU."""
    method = ["--rate", 0.5, "--method", "pgmpf", "--epochs", 1, "--no-onnx"]
    arguments = ["prune", setting.digits, *on_digits(setting), *method, "--out", out]
    device = "cuda" if setting.on_gpu else "cpu"
    arguments = [device if argument == setting.device else argument for argument in arguments]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "compressor"]
    result = subprocess.run([*launch, *map(str, arguments)], capture_output=True, text=True, timeout=240)
    if result.returncode:
        raise RuntimeError(f"exit status {result.returncode}: {result.stderr[-1000:]}")
    return measured(read_report(out))


@case
def nccl(setting: Setting, out: Path) -> dict[str, Value]:
    """The set-up of several processes, which a world of one leaves out: a process group of one rank, by the product's own."""
    need_gpu(setting)
    code = (
        "import torch, torch.distributed as dist; torch.cuda.set_device(0);"
        "dist.init_process_group('cuda:nccl,cpu:gloo', init_method='tcp://127.0.0.1:29577', rank=0, world_size=1);"
        "t = torch.ones(4, device='cuda'); dist.all_reduce(t); dist.broadcast(t, 0); dist.broadcast_object_list([1], 0);"
        "print(dist.get_backend(), float(t.sum())); dist.destroy_process_group()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    if result.returncode:
        raise RuntimeError(result.stderr[-1000:])
    return {"backend": result.stdout.strip()}


@case
def onnx_runtime_cuda(setting: Setting, out: Path) -> dict[str, Value]:
    """ONNX Runtime's CUDA provider, against PyTorch on the CPU."""
    need_gpu(setting)
    train(setting, out, "prune", "--method", "magnitude", "--epochs", 0, onnx=True)
    images = next(iter(open_data("digits").batches("test", batch_size=64, device=torch.device("cpu")))).inputs
    try:
        predict = onnx_predict(out / "model.onnx", "cuda")
    except UsageError as error:
        raise Unavailable(" ".join(str(error).split())) from None
    with torch.inference_mode():
        expected = load(out)(images)
    difference = float((predict(images) - expected).abs().max() / expected.abs().max())
    if difference > 1e-2:
        raise AssertionError(f"the CUDA provider differs from PyTorch by {difference:.2g} of the largest output")
    return {"largest_difference": difference}


def main() -> None:
    setting, names = parse(__doc__ or "", list(CASES))
    os.chdir(ROOT)
    for name in names:
        out = setting.work / "smoke" / re.sub(r"\W+", "-", name)
        shutil.rmtree(out, ignore_errors=True)
        with measurement(name) as values:
            setting.peak_mib()
            values |= CASES[name](setting, out)
            values["peak_mib"] = setting.peak_mib()


if __name__ == "__main__":
    main()
