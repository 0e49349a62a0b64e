"""Segmentation and restoration on real checkpoints and data: pruned, repaired, fine-tuned, factored and quantized.

    python dense_tasks.py --checkpoints DIR --data DIR --work DIR [--only NAME]

ESPNet on CamVid (mIoU over 11 classes of all 233 test images), IMDN x2 (Y-PSNR on Set5) and DnCNN at a noise of 25 (grey, on
CBSD68). Each case is one command of `compress`; its stages say what remains after cutting, repairing and fine-tuning. Training
and repair read the training part of CamVid, and for IMDN CBSD68 and the images of COCO128, shrunk by two; for DnCNN, tested on
CBSD68, the others. DATA holds the unpacked folders camvid, coco128 and superres. A case whose report exists is not run again;
dense_tasks.json gets a row for each.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from compressor.files import write_text
from compressor.report import read_report

EXAMPLES = Path(__file__).parents[1]
RESULTS = Path(__file__).with_suffix(".json")
TUNED = ["--optimizer", "adamw", "--weight-decay", "1e-4"]


@dataclass(frozen=True)
class Network:
    """A checkpoint with the code that builds it, and its data; `trivial` is what its images score without a network, dB."""

    checkpoint: str
    arch: str
    data: str  # a spec; {} is the folder of prepared data
    options: tuple[str, ...]
    prune: tuple[str, ...]
    tune: tuple[str, ...]
    trivial: float | None = None


ESPNET_MEAN, ESPNET_STD = "0.4313725,0.4238431,0.4111765", "71.64,72.11,69.40"  # as published, of BGR from 0 to 1
NETWORKS = {
    "espnet": Network(
        "segmentation/espnet_p_2_q_8_camvid.pth",
        "segmentation/espnet.py:espnet",
        "segmentation:{}/camvid?ignore=11",
        ("--color", "bgr", "--mean", ESPNET_MEAN, "--std", ESPNET_STD),
        ("--method", "taylor", "--set", "images=24", "--residual", "scatter"),
        ("--epochs", "10", "--batch-size", "4", "--crop", "256", "--lr", "2e-5"),
    ),
    "imdn": Network(
        "superres/IMDN_x2.pth",
        "restoration/imdn.py:imdn_x2",
        "superres:{}/set5?scale=2",
        ("--size", "128x128"),
        ("--method", "taylor", "--set", "images=24"),
        ("--epochs", "12", "--batch-size", "8", "--crop", "48", "--lr", "3e-4"),
        33.67,
    ),
    "dncnn": Network(
        "restore/dncnn_s25.pth",
        "restoration/dncnn.py:dncnn",
        "denoise:{}/grey?sigma=25",
        ("--color", "grey", "--size", "128x128"),
        ("--method", "taylor", "--set", "images=24"),
        ("--epochs", "12", "--batch-size", "8", "--crop", "48", "--lr", "3e-4"),
        20.17,
    ),
}


def cases(name: str) -> dict[str, list[str]]:
    """Name -> arguments of `compress`, without the model."""
    network = NETWORKS[name]
    tuned = [*network.tune, *TUNED]
    return {
        **{f"prune {rate}": ["prune", "--rate", rate, *network.prune, *tuned] for rate in ("0.3", "0.5")},
        "lowrank 0.3": ["lowrank", "--rate", "0.3", "--epochs", "0"],
        "int8": ["quantize", "--calibrate", "64"],
    }


def prepare(data: Path, work: Path) -> None:
    """The folders that the specs name, from the unpacked data."""
    if (work / "done").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    (work / "camvid").symlink_to((data / "camvid").resolve())
    photos = sorted((data / "coco128/images").glob("*/*.jpg"))
    sets = {name: sorted((data / "superres" / name).iterdir()) for name in ("CSet5", "CSet14", "CUrban100", "CBSD68")}
    for path in photos:
        with Image.open(path) as image:
            half = image.convert("RGB").resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        save(half, work / f"set5/train/coco-{path.stem}.png")
        save(half.convert("L"), work / f"grey/train/coco-{path.stem}.png")
    for name, files in sets.items():
        for path in files:
            with Image.open(path) as image:
                save(image.convert("L"), work / f"grey/{'test' if name == 'CBSD68' else 'train'}/{name}-{path.stem}.png")
                if name in ("CSet5", "CBSD68"):
                    save(image.convert("RGB"), work / f"set5/{'test' if name == 'CSet5' else 'train'}/{name}-{path.stem}.png")
    (work / "done").touch()


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def run(name: str, case: str, checkpoints: Path, work: Path) -> None:
    """One case, unless it is there. A failure is printed, and the next case begins."""
    network, out = NETWORKS[name], work / "runs" / f"{name}-{case.replace(' ', '-')}"
    command, *arguments = cases(name)[case]
    source = [str(checkpoints / network.checkpoint), "--arch", str(EXAMPLES / network.arch)]
    data = ["--data", network.data.format(work), *network.options]
    asked = [sys.executable, "-m", "compressor", command, *source, *data, *arguments, "--out", str(out), "--quiet"]
    if (out / "report.json").exists():
        return
    began = time.monotonic()
    resume = ["--resume"] if (out / "state/training.pt").exists() else []
    done = subprocess.run([*asked, *resume], capture_output=True, text=True)
    told = f"exit status {done.returncode}: {done.stderr.strip()}" if done.returncode else "done"
    print(f"{name} {case}: {told}, {time.monotonic() - began:.0f} s", flush=True)


def collect(work: Path) -> None:
    """Write a row for each finished case."""
    rows = []
    for name, network in NETWORKS.items():
        for case in cases(name):
            out = work / "runs" / f"{name}-{case.replace(' ', '-')}"
            if not (out / "report.json").exists():
                continue
            report = read_report(out)
            first = report.baseline.scores[0]
            rows.append(
                {
                    "network": name,
                    "case": case,
                    "score": first.label,
                    "unit": first.unit,
                    "n": first.n,
                    "trivial": network.trivial,
                    "macs_left": report.compressed.macs / report.baseline.macs,
                    "params_left": report.compressed.params / report.baseline.params,
                    "size_left": report.change.size_bytes,
                    "stages": {stage.name: stage.scores[0].value for stage in report.stages if stage.scores},
                    "change": [getattr(report.change.scores[first.name], part) for part in ("value", "low", "high")],
                    "epochs": len(report.epochs),
                    "seed": report.seed,
                    "training_seconds": sum(epoch.seconds for epoch in report.epochs),
                    "latency": report.change.latency,
                    "versions": report.versions,
                    "device": report.device,
                }
            )
    write_text(RESULTS, json.dumps({"script": Path(__file__).name, "rows": rows}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with camvid, coco128 and superres")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", choices=NETWORKS, action="append")
    parser.add_argument("--case", action="append", help="by default all")
    options = parser.parse_args()
    prepare(options.data, options.work)
    for name in options.only or NETWORKS:
        for case in options.case or cases(name):
            run(name, case, options.checkpoints, options.work)
            collect(options.work)


if __name__ == "__main__":
    main()
