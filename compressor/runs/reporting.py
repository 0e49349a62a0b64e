"""The results of a run, as parts of its report: the target and what was reached, each layer before and after, the device."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.channels import Channels, Mask
from compressor.checkpoint.plan import Plan
from compressor.data import Data
from compressor.data.images import CROP_SHARE, SMALL
from compressor.data.pixels import mean_color
from compressor.errors import Infeasible, VerificationFailed
from compressor.files import sha256_of
from compressor.methods import widths
from compressor.network.cost import count_macs, count_params, layer_macs, peak_activation_bytes, weight_bytes
from compressor.network.inputs import AnyInputs
from compressor.network.replacements import Chains
from compressor.onnx.export import describe
from compressor.report import Change, Frozen, Latency, Layer, Preprocessing, Profile, Score, Target, formatting
from compressor.report.summary import FASTER
from compressor.runs.run_directory import NETWORK
from compressor.runs.sources import Opened
from compressor.training import distributed
from compressor.training.goal import WITHIN, Goal
from compressor.training.method import Made
from compressor.version import __version__


def profile(model: nn.Module, inputs: AnyInputs, onnx: Path, scores: Sequence[Score], latency: Sequence[Latency]) -> Profile:
    """What `model` and its ONNX file cost; the file may be missing."""
    return Profile(
        macs=count_macs(model, inputs),
        params=count_params(model),
        weight_bytes=weight_bytes(model),
        size_bytes=onnx.stat().st_size if onnx.exists() else None,
        peak_activation_bytes=peak_activation_bytes(model, inputs),
        scores=list(scores),
        latency=list(latency),
    )


def check_cost(compressed: Profile, planned: Mapping[str, float]) -> None:
    """Check that the network has the cost by which the target was met. Raises VerificationFailed."""
    for name, word in (("macs", "MACs"), ("params", "parameters")):
        counted = getattr(compressed, name)
        if name in planned and abs(planned[name] - counted) > max(1.0, 1e-6 * counted):
            raise VerificationFailed(
                f"The compressed network has {counted} {word}, but {planned[name]:.0f} were planned.\nNothing was written."
            )


def check_not_met(goal: Goal, model: nn.Module, inputs: AnyInputs, onnx: Path) -> None:
    """Raise Infeasible when the original, with its ONNX file, already meets the goal."""
    counts: dict[str, tuple[Callable[[], int], str]] = {
        "macs": (lambda: count_macs(model, inputs), " MACs"),
        "params": (lambda: count_params(model), " parameters"),
        "size": (lambda: onnx.stat().st_size, "B"),
    }
    if goal.limit is None or goal.quantity not in counts:
        return
    count, unit = counts[goal.quantity]
    if (found := count()) <= goal.limit:
        raise Infeasible(f"The model already meets {goal.text}, with {formatting.count(found)}{unit}: set a lower target.")


def overhead(goal: Goal, model: nn.Module, onnx: Path) -> float:
    """Bytes of the original's ONNX file besides its weights, which a size goal needs."""
    return onnx.stat().st_size - weight_bytes(model) if goal.quantity == "size" else 0.0


def target(
    goal: Goal,
    baseline: Profile,
    compressed: Profile,
    why: str,
    reached: float | None = None,
    macs_at_asked: float | None = None,
) -> Target:
    """The target and what was reached; `why` explains a difference. `reached` is for quantities that no profile has."""
    before = {"macs": baseline.macs, "params": baseline.params, "size": baseline.size_bytes or 0}
    after = {"macs": compressed.macs, "params": compressed.params, "size": compressed.size_bytes or 0}
    asked = goal.asked(before.get(goal.quantity, 1))
    if reached is None:
        reached = 1 - after[goal.quantity] / before[goal.quantity]
    note = ""
    if goal.limit is not None and asked == 0:
        note = "the original already meets it"
    elif abs(reached - asked) > WITHIN and (goal.share is not None or reached < asked):
        note = why
    return Target(goal.quantity, asked, reached, goal.text, note, macs_at_asked)


def target_of_cut(
    goal: Goal, channels: Channels, mask: Mask, baseline: Profile, compressed: Profile, round_to: int | None
) -> Target:
    """The same for pruned channels; `mask` are the remaining ones."""
    why = _why_not(goal, channels, round_to)
    if goal.quantity != "filters":
        return target(goal, baseline, compressed, why)
    reached, asked = widths.reached(channels, mask, goal), goal.asked(1)
    return target(goal, baseline, compressed, why, reached, widths.macs_at(channels, asked))


def _why_not(goal: Goal, channels: Channels, round_to: int | None) -> str:
    if goal.quantity == "filters":
        return "filters are removed in whole numbers"
    if channels.held:
        return "1 group is frozen" if len(channels.held) == 1 else f"{len(channels.held)} groups are frozen"
    return "whole channels only" if round_to == 1 else f"widths are multiples of {round_to or 'up to 8'}"


def layers(model: nn.Module, small: nn.Module, inputs: AnyInputs, made: Made) -> list[Layer]:
    """Every layer with MACs, before and after; modules that replaced a layer count as that layer."""
    macs, after = layer_macs(model, inputs), dict(small.named_modules())
    weights = {name: weight for name, module in model.named_modules() if (weight := _weight(module)) is not None}
    chained = made.step.parts if isinstance(made.step, Chains) else {}
    names = [name for name in weights if name in macs or name in chained]
    params, params_after = (_by_layer(names, {n: p.numel() for n, p in net.named_parameters()}) for net in (model, small))
    macs, macs_after = (_by_layer(names, counts) for counts in (macs, layer_macs(small, inputs)))
    rows = []
    for name in names:
        factors = [list(p.shape) for p in after[name].parameters() if p.dim() >= 2] if name in chained else []
        weight = _weight(after[name]) if name not in chained else None
        ms, ms_after = made.times.get(name, (None, None))
        rows.append(
            Layer(
                name,
                type(model.get_submodule(name)).__name__,
                list(weights[name].shape),
                list((weights[name] if weight is None else weight).shape),
                macs[name],
                macs_after[name],
                params[name],
                params_after[name],
                made.remarks.get(name, ""),
                factors=factors,
                rank=made.ranks.get(name),
                ms=ms,
                ms_after=ms_after,
            )
        )
    return rows


def _weight(module: nn.Module) -> Tensor | None:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) else None


def _by_layer(layers: Sequence[str], counts: Mapping[str, int]) -> dict[str, int]:
    """Counts of modules or parameters added up by the innermost of `layers` that they belong to."""
    table = dict.fromkeys(layers, 0)
    for name, count in counts.items():
        owner = name
        while owner and owner not in table:
            owner = owner.rpartition(".")[0]
        if owner in table:
            table[owner] += count
    return table


def frozen(made: Made) -> list[Frozen]:
    """What could not be pruned or factored, and why."""
    return [Frozen(row.name, row.reason) for row in made.frozen]


def preprocessing(data: Data | None, plan: Plan | None) -> Preprocessing | None:
    """How images become inputs: as `data` reads them, or without data as in the run whose plan this is."""
    if data is not None and data.fit != "own":
        channels, *size = data.shape
        crop = 1.0 if max(size) <= SMALL or data.fit != "cover" else CROP_SHARE
        return Preprocessing(
            size,
            crop,
            "RGB" if channels == 3 else "L",
            [float(value) for value in data.mean],
            [float(value) for value in data.std],
            data.classes,
            data.fit,
            data.color,
            float(data.max_value),
            data.pad_to,
            None if data.tile is None else list(data.tile),
            mean_color(data.mean, data.color, data.max_value) if data.fit == "letterbox" else None,
        )
    known = plan.preprocessing if plan is not None else None
    return None if known is None else Preprocessing(**known)


def described(opened: Opened, file: Path) -> Preprocessing | None:
    """Write the preprocessing of images into the metadata of an ONNX file, if it is known."""
    how = preprocessing(opened.data, opened.loaded.plan)
    if how is not None:
        describe(file, {"preprocessing": json.dumps(asdict(how))})
    return how


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a network in `folder`, by name."""
    return {name: sha256_of(folder / name) for name in NETWORK if (folder / name).exists()}


def warnings(made: Made, target: Target, change: Change) -> list[str]:
    """Warnings for the report."""
    found = list(made.warnings)
    if target.quantity == "weights":
        found.append("unstructured sparsity: without a runtime for sparse weights the network is as slow and large as before")
    if target.note:
        found.append(f"target: {target.asked:.1%} fewer {target.quantity}, reached {target.reached:.1%}: {target.note}")
    for batch, ratio in change.latency.items():
        if ratio < FASTER:
            found.append(f"no faster at batch {batch}: {change.macs - 1:+.0%} MACs, {1 / ratio - 1:+.0%} time")
    return found


def noisy(*profiles: Profile) -> list[str]:
    """A warning for each batch size with a latency that is not reliable."""
    latencies = [latency for profile in profiles for latency in profile.latency if not latency.reliable]
    worst = {one.batch: one for one in sorted(latencies, key=lambda one: one.p90_ms / one.median_ms)}
    return [
        f"{formatting.unreliable(one)} at batch {batch}: the machine was busy; `compress eval` measures again"
        for batch, one in sorted(worst.items())
    ]


def versions() -> dict[str, str]:
    """Of everything that affects the results."""
    import onnx
    import onnxruntime

    return {
        "compressor": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def device_name(device: torch.device) -> str:
    """The device of training and evaluation; with several processes, that of one."""
    several = f"{distributed.count()} processes, each on " if distributed.count() > 1 else ""
    if device.type == "cuda":
        return several + torch.cuda.get_device_name(device)
    return f"{several}CPU ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"
