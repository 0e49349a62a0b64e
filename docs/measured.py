"""Generate the tables of docs/results.md from the measurements stored next to the scripts in examples/benchmarks/."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).parents[1] / "examples/benchmarks"
Row = dict[str, Any]


def results() -> str:
    """A section for each script whose measurements exist."""
    sections = {
        "recovery": _recovery,
        "criteria": _criteria,
        "peers": _peers,
        "methods": _methods,
        "pruning_cost": _cost,
        "ger": _ger,
        "espace": _espace,
        "whitening": _whitening,
        "lowrank_peers": _lowrank_peers,
        "distillation": _distillation,
        "distillation_recovery": _distillation_recovery,
        "distillation_peers": _distillation_peers,
        "quantization": _quantization,
        "dense_tasks": _dense_tasks,
        "latency_under_load": _latency_under_load,
    }
    return "\n\n".join(section() for name, section in sections.items() if (FIGURES / f"{name}.json").exists())


def _read(name: str) -> Any:
    return json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _of(values: Iterable[float], scale: float = 100) -> str:
    """`81.4`, or the mean of several and their standard deviation: `81.4 ± 0.2`."""
    found = [scale * value for value in values]
    mean = f"{statistics.fmean(found):.1f}"
    return mean if len(found) == 1 else f"{mean} ± {statistics.stdev(found):.1f}"


def _recovery() -> str:
    figures = _read("recovery")
    ways = ("absorbed", "recalibrated", "refitted", "refitted+recalibrated")
    rows = []
    for row in figures["results"]:
        found = row["repaired"]
        cells = [_of(found[way]["top1"], scale=1) if way in found else "" for way in ways]
        seconds = f"{statistics.median(found['refitted']['seconds']):.0f}"
        left = f"{100 * row['macs_left']:.1f} %"
        rows.append([row["model"], row["cut"], left, f"{row['dense']:.1f}", f"{row['as_cut']:.1f}", *cells, seconds])
    header = ["network", "pruning", "MACs left", "original", "pruned", *ways, "seconds of refitting"]
    tested, unlabelled, draws = figures["test_images"], figures["unlabelled_images"], len(figures["seeds"])
    return f"""## Repair without training

Top-1 accuracy in per cent on {tested:,} test images of CIFAR-10 stored as JPEG files, after recovery on {unlabelled}
unlabelled training images: mean and standard deviation over {draws} draws of these images. No weight was trained. `coupled`
and `scatter` are `magnitude` with `largest=true` at half of the MACs; `halved` prunes half of the inner channels of each
block. Times are for one thread on a busy machine.

{_table(header, rows)}

Refitting re-estimates the consumers of pruned channels by least squares. It also sets batch-norm statistics, and
recalibrating them afterwards loses part of the gain; a run tries both. Absorbing, which uses no images, does not help here:
it is in the library (`compressor.recovery.repair.absorb`), but no run uses it."""


def _criteria() -> str:
    figures = _read("criteria")
    rows = sorted(figures["results"], key=lambda row: -float(row["top1"]))
    table = [[f"`{row['criterion']}`", row["scale"], _of(run["top1"] for run in row["runs"])] for row in rows]
    recalibration, held_out = figures["recalibration_images"], figures["held_out_images"]
    before = f"{100 * figures['original_top1']:.1f}"
    return f"""## Pruning criteria

A ResNet-20 pruned once to half its MACs by each criterion, then batch norms recalibrated on {recalibration:,} training
images; no repair, no training. Top-1 accuracy in per cent on {held_out:,} held-out images ({before} before pruning). The
checkpoint was trained on these images, so the values only serve to compare criteria. Criteria that use images were run with
three draws of them.

{_table(["criterion", "scaled by group", "held-out top-1"], table)}"""


def _peers() -> str:
    rows: list[Row] = _read("peers")["rows"]
    places = list(dict.fromkeys((row["network"], row["rate"], row["side"]) for row in rows))
    names = ("macs_gone", "cut", "recalibrated", "repaired", "fine_tuned", "fine_tuned_with_teacher")
    table = []
    for network, rate, side in places:
        own = [row for row in rows if (row["network"], row["rate"], row["side"]) == (network, rate, side)]
        cells = [_of(row[name] for row in own) if name in own[0] else "" for name in names]
        table.append([network, f"{100 * rate:.0f} %", side, str(len(own)), *cells])
    header = ["network", "target", "tool", "seeds", "MACs removed, %", "pruned", "recalibrated", "repaired"]
    header += ["fine-tuned", "fine-tuned with teacher"]
    tested, few, images, epochs = (rows[0][name] for name in ("test", "few", "images", "epochs"))
    dense = {row["network"]: row["dense"] for row in rows if "dense" in row}
    told = " and ".join(f"{network} {100 * top1:.1f}" for network, top1 in dense.items())
    return f"""## Comparison with Torch-Pruning

Top-1 accuracy in per cent on {tested:,} test images, mean and standard deviation over seeds. A seed draws the {few} images
for batch-norm statistics, Taylor scores and repair, and the {images:,} images for {epochs} epochs of fine-tuning. Accuracy
of the originals: {told}. Torch-Pruning is version 1.6.1; in ResNet-20 it prunes only the inner channels of blocks, because
of the padded shortcuts.

{_table(header, table)}"""


def _methods() -> str:
    rows: list[Row] = _read("methods")
    table = []
    for row in rows:
        gap = 100 * (row["before"][-1] - row["after"][-1])
        shares = [f"{100 * row[name]:.1f}" for name in ("macs_gone", "top1", "recalibrated")]
        table.append([f"`{row['method']}`", row["residual"], *shares, f"{gap:.1f}"])
    header = ["method", "residual", "MACs removed, %", "top-1", "recalibrated", "before - after, points"]
    checkpoint, epochs, images, seed, lr = (rows[0][name] for name in ("checkpoint", "epochs", "images", "seed", "lr"))
    return f"""## Methods that prune during training

{checkpoint}, 40 % of the filters, {epochs} epochs of {images:,} training images, seed {seed}, the papers' recipe (learning rate
{lr}, divided by five at 30, 60 and 80 % of training); top-1 accuracy in per cent on 10,000 test images after the last epoch.
`dense` is the unpruned network trained in the same way. "Before - after" is the loss of accuracy on held-out images when the
filters are weakened at the end of the last epoch. With one seed, and far fewer steps than in the papers, differences of one
point are not significant.

{_table(header, table)}"""


def _cost() -> str:
    figures = _read("pruning_cost")
    images, epochs = figures["images"], figures["epochs"]
    masks, shrinking = figures["pgmpf"]["ratio"], figures["ghfp"]["ratio"]
    return f"""## Cost of pruning during training

A ResNet-20 on one CPU thread, {images:,} images per epoch, medians of interleaved rounds.

- An epoch of PGMPF, whose masks damp gradients in every step, takes {masks:.2f} times as long as an epoch without pruning.
- Training with GHFP at half of the MACs for {epochs} epochs, with hard-pruned filters removed from the network during training,
  takes {shrinking:.2f} times as long as with their removal at the end."""


# Low rank -------------------------------------------------------------------------------------------------------------


def _ger() -> str:
    figures = _read("ger")
    table = []
    for row in figures["results"]:
        ranks = ", ".join(str(rank) for rank in row["ranks"].values())
        apart, joint = (statistics.fmean(row[name]) for name in ("apart", "joint"))
        least = min(joint - apart for joint, apart in zip(row["joint"], row["apart"], strict=True))
        whole = f"{row['params']:,}"
        table.append([f"{row['times']}", whole, ranks, f"{row['svd']:.2f}", f"{apart:.2f}", f"{joint:.2f}", f"{least:+.2f}"])
    header = ["times fewer", "parameters", "ranks", "decomposed (A)", "trained per layer", "trained jointly (B)"]
    header += ["smallest gain of B over per-layer training, points"]
    seeds, dense, tested = len(figures["results"][0]["joint"]), figures["dense"], figures["test_images"]
    return f"""## GER: joint or per-layer training of the factors

The fully-connected layers of a small VGG (`examples/cifar/vgg.py`, {dense:.1f} % on {tested:,} test images of CIFAR-10),
with the number of parameters divided by at least the given factor, as ranks increase in steps. Top-1 accuracy in per cent
after the last epoch, the mean over {seeds} orders of the images (they differ by a few hundredths); equal ranks, equal
epochs, no labels. The learning rates were selected on held-out images. Down to a thirtieth of the parameters, the
decomposition alone loses no accuracy, so training cannot recover any; beyond that, joint training of all factors gains
several points.

{_table(header, table)}"""


def _espace() -> str:
    figures = _read("espace")
    rows = [row for row in figures["results"] if "infeasible" not in row]
    table = [
        [
            f"{row['asked']:g}", row["way"], f"{row['fewer_macs']:.2f}", f"{row['recalibrated']:.1f}", f"{row['trained']:.1f}",
            str(row["epochs"]), f"{row['ms_original']:.2f} → {row['ms']:.2f}", f"{row['faster']:.2f}",
        ]
        for row in rows
    ]  # fmt: skip
    refused = [f"{row['way']} at {row['asked']:g}: {row['infeasible']}" for row in figures["results"] if "infeasible" in row]
    first = rows[0]
    layers = [
        [f"`{layer['layer']}`", layer["what"].split(", keeps")[0], f"{layer['fewer_macs']:.2f}", _times(layer["faster"])]
        for layer in first["layers"]
    ]
    header = ["target", "variant", "times fewer MACs", "recalibrated", "fine-tuned", "epochs", "ms", "speed-up"]
    rounds = f" ({figures['times']})" if "times" in figures else ""
    note = f"\n\nNot achievable: {'; '.join(refused)}" if refused else ""
    return f"""## ESPACE: low rank, spatial masks, and both

The small VGG ({figures["original"]["top1"]:.1f} % on the test images). Top-1 accuracy in per cent on 10,000 test images
after batch-norm recalibration, and after the given number of epochs of {figures["images"]["train"]:,} training images with
the original as the teacher. The target is the factor by which MACs are reduced. Latency is that of ONNX Runtime for one
image on one thread, with interleaved measurements of the original and the compressed network, the median of 200{rounds}. A
layer is changed only if it is faster when timed alone.

{_table(header, table)}{note}

Each layer, for {first["way"]} at {first["asked"]:g}: the reduction of its MACs, and the measured speed-up of the layer
alone.

{_table(["layer", "change", "times fewer MACs", "speed-up"], layers)}"""


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _whitening() -> str:
    figures = _read("whitening")
    names = {"plain": "weights", "ranks": "weights, ranks by images", "whitened": "images"}
    table = []
    for row in figures["rows"]:
        shares = [f"{100 * row[name]:.0f} %" for name in ("rate", "macs_left")]
        after = f"{row['recalibrated']:.1f}" if "recalibrated" in row else ""
        table.append([row["model"], shares[0], names[row["by"]], shares[1], f"{row['error']:.2f}", f"{row['top1']:.1f}", after])
    dense = " and ".join(
        f"{model} {top1:.1f}" for model, top1 in {row["model"]: row["dense"] for row in figures["rows"]}.items()
    )
    header = ["network", "target MACs removed", "factored by", "MACs left", "error", "top-1", "recalibrated"]
    return f"""## Factorization by images or by weights

Convolutions are factored along their channels, linear layers into two, without training or repair. `error` is the relative
output error of each layer on held-out images, summed over the layers; top-1 accuracy is in per cent on
{figures["test_images"]:,} test images. Accuracy of the originals: {dense}.

{_table(header, table)}"""


def _lowrank_peers() -> str:
    figures = _read("lowrank_peers")
    rows: list[Row] = figures["rows"]
    names = {"macs_left": 100, "params_left": 100, "factored": 100, "recalibrated": 100, "repaired": 100, "fine_tuned": 100}
    table = []
    for side in dict.fromkeys(row["side"] for row in rows):
        own = [row for row in rows if row["side"] == side]
        cells = [_of((row[name] for row in own), scale) if name in own[0] else "" for name, scale in names.items()]
        table.append([side, str(len(own)), *cells, f"{statistics.median(row['latency'] for row in own):.2f}"])
    header = ["tool", "seeds", "MACs left, %", "parameters left, %", "factored", "recalibrated", "repaired", "fine-tuned"]
    versions, original = figures["versions"], figures["original"]
    return f"""## Comparison with tensorly-torch and fasterai

A ResNet-20 ({100 * original["top1"]:.1f} % on {figures["test_images"]:,} test images) at an equal number of parameters;
tensorly-torch {versions["tensorly-torch"]} and fasterai {versions["fasterai"]}. Top-1 accuracy in per cent. Fine-tuning is
the same for all, with labels only. The last column is the latency of ONNX Runtime for one image on one thread, relative to
the original's.

{_table([*header, "latency"], table)}"""


# Distillation ---------------------------------------------------------------------------------------------------------

RATES = {"scratch": 0.05, "checkpoint": 0.01}  # of `examples/benchmarks/distillation.py`
STARTS = {"scratch": "From random weights", "checkpoint": "From the checkpoint's weights"}


def _distillation() -> str:
    rows: list[Row] = _read("distillation")["rows"]
    budgets = sorted({(row["start"], row["epochs"], row["images"]) for row in rows}, key=lambda budget: (-budget[1], budget))
    tables = []
    for start in STARTS:
        for budget in (budget for budget in budgets if budget[0] == start):
            own = [row for row in rows if (row["start"], row["epochs"], row["images"]) == budget]
            tables.append(f"{STARTS[start]}, {budget[1]} epochs of {budget[2]:,} images:\n\n{_beside_none(own)}")
    told = "\n\n".join(tables)
    return f"""## Knowledge distillation

A ResNet-56 teacher with a ResNet-20 student, or mutual learning of ResNet-20s, on few training images. Top-1 accuracy in per
cent on {rows[0]["n"]:,} test images after the last epoch: the mean over seeds, with the minimum and maximum. A seed draws
the initial weights and the order of the images. `none` is trained with labels only; the difference to it, in points, is over
the seeds that both have. Nothing was selected on test images; the defaults of `rcka` and `dist` were selected on held-out
images, and the results with other values are listed, too.

{told}"""


def _beside_none(rows: list[Row]) -> str:
    """All methods that were given one budget, the best first."""
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(_named(row), []).append(row)
    plain = {row["seed"]: row for row in rows if row["method"] == "none"}
    table = []
    for name, own in sorted(methods.items(), key=lambda item: -statistics.fmean(row["top1"] for row in item[1])):
        pairs = [(row, plain[row["seed"]]) for row in own if row["seed"] in plain and row["method"] != "none"]
        gain = f"{100 * statistics.fmean(ours['top1'] - none['top1'] for ours, none in pairs):+.1f}" if pairs else ""
        beside = f"{own[0]['trained_params'] - own[0]['params']:,}"
        table.append([name, _ranged([row["top1"] for row in own]), str(len(own)), gain, beside])
    header = ["method", "top-1", "seeds", "difference to `none`", "parameters trained in addition to the student"]
    return _table(header, table)


def _named(row: Row) -> str:
    """A method, with settings that are not its own."""
    settings = dict(row["settings"])
    if row["lr"] != RATES[row["start"]]:
        settings["lr"] = row["lr"]
    return " ".join([f"`{row['method']}`", *(f"`{key}={value:g}`" for key, value in settings.items())])


def _ranged(shares: list[float]) -> str:
    """`66.7`, or the mean of several and where they lie: `67.4 (66.7 to 68.1)`."""
    mean = f"{100 * statistics.fmean(shares):.1f}"
    return mean if len(shares) == 1 else f"{mean} ({100 * min(shares):.1f} to {100 * max(shares):.1f})"


def _distillation_recovery() -> str:
    figures = _read("distillation_recovery")
    rows: list[Row] = figures["rows"]
    table = []
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        means = [f"{statistics.fmean(row[key] for row in own):,.0f}" for key in ("epochs", "images", "seconds", "earlier")]
        table.append([f"`{name}`", _ranged([row["top1"] for row in own]), str(len(own)), *means])
    header = ["method", "top-1", "seeds", "epochs", "images per epoch", "seconds", "seconds of training the teacher before"]
    first, (cut, whole) = rows[0], (f"{100 * figures[name]:.1f}" for name in ("cut_top1", "teacher_top1"))
    return f"""## Recovery after pruning, in equal time

A ResNet-56 ({whole} % on {first["n"]:,} test images) pruned to {100 * first["macs_left"]:.0f} % of its MACs and repaired
({cut} %), then distilled from the original for about {first["budget_s"]:.0f} seconds on one thread with each method; `none`
is trained with labels only. A method that takes longer per image sees fewer images. Top-1 accuracy in per cent after the
last epoch.

{_table(header, table)}"""


def _distillation_peers() -> str:
    figures = _read("distillation_peers")
    table = []
    for name, line in figures["summary"].items():
        ratios = [f"{line[ratio]:.2f}" for ratio in ("cpu_seconds_ratio", "seconds_ratio")]
        top1 = [f"{100 * line['top1'][side]:.1f}" for side in ("ours", "theirs")]
        table.append([name, f"{line['loss_difference']:.1e}", *ratios, str(line["epochs_timed"]), *top1])
    header = ["loss", "difference", "CPU time ratio", "time ratio", "epochs timed", "top-1, ours", "top-1, theirs"]
    note = figures["note"].rstrip(".")
    told = f" {note[0].upper()}{note[1:]}." if note else ""
    return f"""## Comparison with torchdistill

The same losses in torchdistill {figures["versions"]["torchdistill"]}, on the same batches and from the same weights: a
ResNet-56 teacher and a ResNet-20 student, in float32, on one thread, with interleaved epochs. Losses are compared in the
first step; time ratios are our median over theirs. Top-1 accuracy is in per cent on {figures["test_images"]:,} test images
after the last epoch.{told}

{_table(header, table)}"""


# Quantization ---------------------------------------------------------------------------------------------------------


def _quantization() -> str:
    figures = _read("quantization")
    rows, others = figures["rows"], figures["choices"]
    first, table = rows[0], []
    for row in rows:
        left = figures["cuts"].get(row["name"].removesuffix(", INT8"), {}).get("macs_left", 1)
        size = [f"{row['size_bytes'] / 1000:,.0f}", f"{first['size_bytes'] / row['size_bytes']:.1f}"]
        top1 = f"{100 * row['top1']:.2f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        table.append([row["name"], f"{100 * left:.0f}", *size, top1, *_rounds(row, first)])
    choices = []
    for row in others:
        close = [f"{100 * row['agreement']:.2f}", f"{row['mean_kl']:.4f}"]
        choices.append([row["name"], f"{row['size_bytes'] / 1000:,.0f}", *close, *_rounds(row, first)])
    times = ["ms, one image", "speed-up", "ms, 32 images", "speed-up"]
    header = ["file", "MACs left, %", "kB", "times smaller", "top-1 [95 %]", *times]
    others_header = ["scheme", "kB", "agreement, %", "mean KL, nats", *times]
    return f"""## What quantization gives

A ResNet-20 as ONNX files: float32, pruned (`compress prune`, {figures["epochs"]} epochs, seed {figures["seed"]}), INT8, and
pruned with INT8. Top-1 accuracy is in per cent on {first["n"]:,} test images. Latency is that of ONNX Runtime on one thread
({figures["processor"]}), with interleaved measurements of all files on a busy machine: the median of {figures["rounds"]}
rounds, and in brackets the minimum and maximum. In INT8, widths that are multiples of 16 (`--round-to 16`) save more time
than removing more MACs at other widths; for this network they restrict the choice of channels and cost more accuracy.

{_table(header, table)}

Quantization schemes for the unpruned network, compared with float32 on {others[0]["n"]:,} held-out images, on which the
network was trained. `static` is the default with images. The rows for signed activations and dynamic convolutions show why
`compress quantize` does not use them.

{_table(others_header, choices)}"""


def _rounds(row: Row, first: Row) -> list[str]:
    """Milliseconds with their range, and how many times as fast as the first row, for each batch size."""
    cells = []
    for batch, (median, least, most) in row["ms"].items():
        cells += [f"{median:.3g} ({least:.3g} to {most:.3g})", f"{first['ms'][batch][0] / median:.2f}"]
    return cells


DENSE = {"espnet": "ESPNet, CamVid", "imdn": "IMDN x2, Set5", "dncnn": "DnCNN, noise of 25, CBSD68"}


def _dense_tasks() -> str:
    rows = _read("dense_tasks")["rows"]
    stages = ("original", "cut", "repaired", "fine-tuned")
    header = ["network", "command", "MACs left, %", "size left, %", *stages, "result as ONNX", "change [95 %]", "epochs"]
    table = []
    for row in rows:
        scale = 100 if row["unit"] == "%" else 1
        last = {"cut": row["stages"].get("cut", row["stages"].get("factored"))}
        values = [last.get(name) or row["stages"].get(name) for name in stages]
        cells = ["" if value is None else f"{scale * value:.2f}" for value in (*values, list(row["stages"].values())[-1])]
        low, high = ("" if bound is None else f"{scale * bound:.2f}" for bound in row["change"][1:])
        shares = [f"{100 * row['macs_left']:.1f}", f"{100 * (row['size_left'] or 1):.1f}"]
        change = f"{scale * row['change'][0]:+.2f} [{low}, {high}]"
        table.append([DENSE[row["network"]], f"`{row['case']}`", *shares, *cells, change, str(row["epochs"] or "")])
    trivial = "; ".join(
        f"{DENSE[name]}: {value:.2f} dB" for name, value in {r["network"]: r["trivial"] for r in rows}.items() if value
    )
    return f"""## Segmentation and restoration

Public checkpoints on public test images, seed {rows[0]["seed"]}: ESPNet in mIoU over 11 classes, in per cent; IMDN and DnCNN in
PSNR, dB, of luma or grey. Repair needs no labels. Training and repair read none of the test images; the last epoch is reported.
Without any network, bicubic interpolation and the noisy image have: {trivial}.

{_table(header, table)}"""


def _latency_under_load() -> str:
    figures = _read("latency_under_load")
    middle = statistics.median(figures["quiet"]["ratios"])
    rows = []
    for key, clock in (("ratios", "processor time, as reported"), ("wall_ratios", "wall time")):
        for name in ("quiet", "loaded"):
            found = figures[name][key]
            far = max(abs(ratio / middle - 1) for ratio in found)
            cells = [f"{value:.2f}" for value in (statistics.median(found), min(found), max(found))]
            rows.append([clock, name, *cells, f"{100 * far:.0f} %"])
    header = ["clock", "machine", "median", "least", "most", "largest distance from the quiet median"]
    return f"""## Latency on a busy machine

How many times as fast as a ResNet-18 the same network with half of its MACs is in ONNX Runtime, one image, one thread:
{len(figures["quiet"]["ratios"])} measurements on a quiet machine, and as many beside {figures["busy"]} processes that are
always busy. {figures["loaded"]["unreliable"]} of the latter were called unreliable.

{_table(header, rows)}"""
