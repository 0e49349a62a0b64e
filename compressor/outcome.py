"""What came out of a run, as parts of its report: what was asked and reached, each layer before and after, on what it ran."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor import __version__, budget, measure
from compressor.budget import Goal
from compressor.channels import Channels, Mask
from compressor.errors import VerificationFailed
from compressor.inputs import AnyInputs
from compressor.report import Accuracy, Change, Latency, Layer, Profile, Target
from compressor.report.summary import FASTER


def profile(model: nn.Module, inputs: AnyInputs, onnx: Path, accuracy: Accuracy | None, latency: Sequence[Latency]) -> Profile:
    """What `model` and its ONNX file cost."""
    return Profile(
        macs=measure.count_macs(model, inputs),
        params=measure.count_params(model),
        weight_bytes=measure.weight_bytes(model),
        size_bytes=onnx.stat().st_size,
        peak_activation_bytes=measure.peak_activation_bytes(model, inputs),
        accuracy=accuracy,
        latency=list(latency),
    )


def check_cost(compressed: Profile, channels: Channels, mask: Mask) -> None:
    """The table that the budget was met with must agree with the network that came out. Raises VerificationFailed."""
    tables = {"MACs": (compressed.macs, channels.macs), "parameters": (compressed.params, channels.params)}
    for name, (counted, table) in tables.items():
        planned = table.total(mask)
        if abs(planned - counted) > max(1.0, 1e-6 * counted):
            raise VerificationFailed(
                f"the small network has {counted} {name}, but {planned:.0f} were planned.\nNothing was written."
            )


def target(
    goal: Goal,
    channels: Channels,
    mask: Mask,
    small: nn.Module,
    baseline: Profile,
    compressed: Profile,
    round_to: int | None,
) -> Target:
    """What was asked and reached; the note says why they differ, if they do."""
    before = {"macs": baseline.macs, "params": baseline.params, "size": baseline.size_bytes or 0}
    after = {"macs": compressed.macs, "params": compressed.params, "size": compressed.size_bytes or 0}
    macs_at_asked = None
    if goal.quantity == "weights":
        asked, reached = goal.asked(1), measure.sparsity(small)
    elif goal.quantity == "filters":
        asked, reached = goal.asked(1), budget.reached(channels, mask, goal)
        macs_at_asked = budget.macs_at(channels, asked)
    else:
        asked, reached = goal.asked(before[goal.quantity]), 1 - after[goal.quantity] / before[goal.quantity]
    note = ""
    if goal.limit is not None and asked == 0:
        note = "the original already meets it"
    elif abs(reached - asked) > budget.WITHIN and (goal.share is not None or reached < asked):
        note = _why_not(goal, channels, round_to)
    return Target(goal.quantity, asked, reached, goal.text, note, macs_at_asked)


def _why_not(goal: Goal, channels: Channels, round_to: int | None) -> str:
    if goal.quantity == "filters":
        return "each layer gives a whole number of filters"
    if channels.held:
        return "1 group had to stay whole" if len(channels.held) == 1 else f"{len(channels.held)} groups had to stay whole"
    return "whole channels only" if round_to == 1 else f"widths are multiples of {round_to or 'up to 8'}"


def layers(model: nn.Module, small: nn.Module, channels: Channels, mask: Mask) -> list[Layer]:
    """Every layer that multiplies, before and after."""
    whole = channels.all_kept()
    macs, macs_after = channels.macs.by_layer(whole), channels.macs.by_layer(mask)
    params, params_after = channels.params.by_layer(whole), channels.params.by_layer(mask)
    group_of = {layer: group.name for group in channels.groups for layer in group.layers}
    why = {row.name: row.reason for row in channels.frozen()}
    after = dict(small.named_modules())
    rows = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if name not in macs or not isinstance(weight, Tensor):
            continue
        rows.append(
            Layer(
                name,
                type(module).__name__,
                list(weight.shape),
                list(after[name].weight.shape),
                round(macs[name]),
                round(macs_after[name]),
                round(params.get(name, 0)),
                round(params_after.get(name, 0)),
                group_of.get(name) or why.get(name, ""),
            )
        )
    return rows


def warnings(channels: Channels, target: Target, change: Change) -> list[str]:
    """What a reader must not overlook."""
    found = [
        f"operator {operator} has no rule ({count} times): what it touches was left whole"
        for operator, count in channels.unknown_operators().items()
    ]
    if target.quantity == "weights":
        found.append("single weights are zero: without a runtime for sparse weights the network is as slow and large as before")
    if target.note:
        found.append(f"asked for {target.asked:.1%} fewer {target.quantity}, reached {target.reached:.1%}: {target.note}")
    for batch, ratio in change.latency.items():
        if ratio < FASTER:
            found.append(f"no faster at batch {batch}: {change.macs - 1:+.0%} MACs, {1 / ratio - 1:+.0%} time")
    return found


def versions() -> dict[str, str]:
    """Of everything that has a say in the figures."""
    import onnx
    import onnxruntime
    import torchvision

    return {
        "compressor": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def device_name(device: torch.device) -> str:
    """What trained and measured."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"
