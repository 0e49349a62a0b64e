"""CIFAR-10 (JPEG), ResNet-56 with 52.6 % fewer FLOPs, as the papers on soft filter pruning report it.

    python recipe.py --work WORK --seconds 240

All arms train side by side, with as many epochs as the seconds hold: one timed epoch of all of them says how many, so that
every schedule ends. More seeds run when each still has EPOCHS_ENOUGH. The papers' arms train by their recipe and prune inside
the blocks (`--residual scatter`); `default` is what `compress prune` does when nothing else is asked for; `dense` is the
unpruned network, trained by the papers' recipe. Top-1 is that of the last epoch, on the test images.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from rows import Value, emit
from setting import RESNET20, Setting, Unavailable, measurement

from compressor.errors import CompressError
from compressor.report import Report, named, read_report
from compressor.runs.compare import DENSE, Series
from compressor.runs.run import Order
from compressor.runs.sources import Images, Source
from compressor.training.recipe import Recipe

RATE = 0.526  # of the FLOPs of ResNet-56, in the tables of the papers
ARMS = {"pgmpf": "pgmpf", "asrfp": "asrfp", "ghfp": "ghfp", "default": "magnitude", "dense": DENSE}
TINY = ("pgmpf",)
EPOCHS_ENOUGH, MOST_SEEDS = 30, 3
MARGIN = 0.85  # of the time that is left: epochs differ, and evaluation and export come after them
SIDE = 32


def rows() -> list[str]:
    """The rows that a whole run of this program prints first."""
    return ["timed epoch", *(f"{arm} seed 0" for arm in ARMS)]


def train(setting: Setting, arm: str, seed: int, epochs: int) -> Report:
    """One arm, in this process."""
    default = arm == "default"
    recipe = replace(Recipe() if default else Recipe.paper(SIDE), epochs=epochs, seed=seed)
    model, arch = ("resnet20", "resnet20") if setting.tiny else ("resnet56", "resnet56")
    data = setting.small if setting.tiny else setting.cifar10
    order = Order(
        Source(str(setting.work / f"{model}.pt"), f"{RESNET20}:{arch}"),
        Images(f"imagefolder:{data}"),
        recipe,
        place(setting, epochs),
        setting.device,
        force=True,
        onnx=False,
    )
    wanted = ARMS[arm]
    methods = ["magnitude" if wanted == DENSE else wanted]
    series = Series(
        order, methods=methods, rates=[RATE], seeds=[seed], residual="coupled" if default else "scatter", dense=True
    )
    (trial,) = (trial for trial in series.trials if (trial.method == DENSE) == (wanted == DENSE))
    return trial.job.run()


def place(setting: Setting, epochs: int) -> Path:
    return setting.work / "recipe" / f"{epochs}-epochs"


def report_of(setting: Setting, arm: str, seed: int, epochs: int) -> Report:
    name = f"{DENSE}-seed{seed}" if ARMS[arm] == DENSE else f"{ARMS[arm]}-{RATE:g}-seed{seed}"
    return read_report(place(setting, epochs) / name)


def train_side_by_side(
    setting: Setting, trials: list[tuple[str, int]], epochs: int, deadline: float
) -> dict[tuple[str, int], str]:
    """All trials, each in a process of its own. Returns the end of the output of those that failed or were late."""
    processes = {}
    for arm, seed in trials:
        log = place(setting, epochs) / f"{arm}-{seed}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--work", str(setting.work), "--device", setting.device]
        command += ["--tiny"] * setting.tiny + ["--arm", arm, "--seed", str(seed), "--epochs", str(epochs)]
        with log.open("w") as file:
            processes[arm, seed] = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT), log
    failed = {}
    for trial, (process, log) in processes.items():
        try:
            status = process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            status = None
        if status != 0:
            end = log.read_text()[-1000:]
            failed[trial] = f"{'late' if status is None else f'exit status {status}'}: {end}"
    return failed


def measure(setting: Setting, seconds: float) -> None:
    began, deadline = time.monotonic(), time.monotonic() + seconds
    if not setting.tiny and not (setting.work / "resnet56.pt").exists():
        raise Unavailable("no resnet56-4bfd9763.th in --assets")
    if not setting.tiny:
        _ = setting.cifar10
    with measurement("timed epoch") as values:
        first = [(arm, 0) for arm in ARMS if not setting.tiny or arm in TINY]
        failed = train_side_by_side(setting, first, 1, deadline)
        finished = [report_of(setting, arm, seed, 1) for arm, seed in first if (arm, seed) not in failed]
        if not finished:
            raise RuntimeError(next(iter(failed.values())))
        epoch = max(report.epochs[-1].seconds for report in finished)
        around = time.monotonic() - began - epoch  # start, reading images, scores, evaluation, export
        left = (deadline - time.monotonic()) * MARGIN - around
        epochs = 1 if setting.tiny else int(left / epoch)
        seeds = 1 if setting.tiny else max(1, min(MOST_SEEDS, epochs // EPOCHS_ENOUGH))
        epochs //= seeds
        values |= {"epoch_s": epoch, "around_s": around, "epochs": epochs, "seeds": seeds}
    if epochs < 1:
        for row in rows()[1:]:
            emit(row, {}, 0.0, "not run", "no time for one more epoch")
        return
    trials = [(arm, seed) for seed in range(seeds) for arm in ARMS]
    began = time.monotonic()
    if epochs > 1:
        failed = train_side_by_side(setting, trials, epochs, deadline)
    for arm, seed in trials:
        name = f"{arm} seed {seed}"
        if setting.tiny and arm not in TINY:
            emit(name, {}, 0.0, "unavailable", "more than a tiny run has time for")
            continue
        if (arm, seed) in failed:
            emit(name, {"epochs": epochs}, time.monotonic() - began, "failed", failed[arm, seed])
            continue
        report = report_of(setting, arm, seed, epochs)
        emit(name, values_of(report), report.seconds)


def values_of(report: Report) -> dict[str, Value]:
    before, after = report.baseline, report.compressed
    values: dict[str, Value] = {"epochs": len(report.epochs), "macs_left": after.macs / before.macs}
    if report.target.macs_at_asked is not None:
        values["macs_removed_as_papers_count"] = report.target.macs_at_asked
    if (first := named(before.scores, "top1")) and (last := named(after.scores, "top1")):
        values |= {"top1_before": first.value, "top1_after": last.value, "n": last.n}
    if report.epochs:
        values |= {"images_per_s": round(report.epochs[-1].images_per_second, 1)}
    return values


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="the folder that prepare.py filled")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--arm", choices=ARMS, help="train this one alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    setting = Setting(options.work.resolve(), options.device, options.tiny)
    if options.arm:
        try:
            train(setting, options.arm, options.seed, options.epochs)
        except CompressError as error:
            print(error)
            return error.exit_code
        return 0
    try:
        measure(setting, options.seconds)
    except Unavailable as error:
        for row in rows():
            emit(row, {}, 0.0, "unavailable", str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
