"""What a network costs and how good its answers are: every figure of a report is measured here.

Cost is counted on the network as it stands, with whole channels, by running one image through a copy without data
(meta.py). Speed is ONNX Runtime's on the written file, because that is what gets deployed; files that are
compared take turns, so that a machine that warms up or gets busy slows them all alike. Accuracy comes with Wilson's
interval, because ten thousand images do not tell 91.2 % from 91.4 %.

Units: MACs are multiply-adds for one image, sizes are bytes, times are milliseconds for one batch, accuracies are
fractions between 0 and 1. `inputs` is the shape of one image (channels, height, width), or whatever `Inputs.of` takes.
"""

import contextlib
import copy
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from compressor.errors import DataError, UsageError, VerificationFailed
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.meta import evaluating, meta_copy, separate_attention
from compressor.network.outputs import logits_of, tensors_in
from compressor.onnx.runtime import bound_run, first_line, open_session, run_session
from compressor.report.schema import Accuracy, Fidelity, Latency
from compressor.training.method import Batch

Predict = Callable[..., Tensor]  # images [n, channels, height, width], or every input -> logits [n, classes]
Watch = TypeVar("Watch", bound=AbstractContextManager[Any])

# --- cost ------------------------------------------------------------------------------------------------------------


def count_macs(model: nn.Module, inputs: AnyInputs) -> int:
    """Multiply-adds of all convolutions and matrix products for one image."""
    return _count_flops(model, inputs).get_total_flops() // 2


def layer_macs(model: nn.Module, inputs: AnyInputs) -> dict[str, int]:
    """Multiply-adds for one image by module name; what is done inside a module's children counts for them alone.

    Modules that do none are left out; the values add up to `count_macs`.
    """
    flops = _count_flops(model, inputs).get_flop_counts()
    root = type(model).__name__  # the counter's name for layer1.0.conv1 is ResNet.layer1.0.conv1
    macs: dict[str, int] = {}
    for name, _ in reversed(list(model.named_modules())):  # children before parents
        within = sum(flops.get(f"{root}.{name}" if name else root, {}).values()) // 2
        own = within - sum(count for below, count in macs.items() if below.startswith(f"{name}." if name else ""))
        if own > 0:
            macs[name] = own
    return dict(reversed(macs.items()))


def count_params(model: nn.Module) -> int:
    """Numbers in the parameters; a parameter that has two names counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def sparsity(model: nn.Module) -> float:
    """The share of the weights of all layers that are zero; biases and norms do not count."""
    weights = [weight for weight in model.parameters() if weight.dim() >= 2]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, each counted once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def peak_activation_bytes(model: nn.Module, inputs: AnyInputs) -> int:
    """Largest sum of bytes of the tensors alive at one time while PyTorch, in eval mode, answers for one image.

    The image counts and the weights do not; a view counts as what it looks into.
    """
    return _forward(model, inputs, _PeakMemory).peak


def _count_flops(model: nn.Module, inputs: AnyInputs) -> FlopCounterMode:
    return _forward(model, inputs, lambda network, samples: FlopCounterMode(display=False))


def _forward(model: nn.Module, inputs: AnyInputs, watch: Callable[[nn.Module, list[Tensor]], Watch]) -> Watch:
    """Runs one image through a copy of the model in eval mode while `watch(network, samples)` looks on; returns it."""
    inputs = Inputs.of(inputs)

    def run(network: nn.Module) -> Watch:
        samples = inputs.random(1, like=network)
        watching = watch(network.eval().requires_grad_(False), samples)  # PyTorch's counter trips over some that have gradients
        with torch.no_grad(), separate_attention(), watching:
            inputs.call(network, samples)
        return watching

    with contextlib.suppress(Exception):  # a network that branches on values cannot run without data
        return run(meta_copy(model))
    try:
        return run(copy.deepcopy(model))
    except Exception as error:
        raise UsageError(
            f"The network cannot answer for {inputs.described}: give the shape it was trained with.\n{first_line(error)}"
        ) from error


class _PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves the mode's methods untyped
    """Looks at every operator's outputs and adds up the storages that are alive."""

    def __init__(self, network: nn.Module, samples: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.alive = self.peak = 0
        # By address: one is used again only after the storage that had it is gone, and forgotten.
        self.known = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
        for sample in samples:
            self._remember(sample)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tensors_in(output):
            self._remember(tensor)
        return output

    def _remember(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.alive -= size


# --- quality ---------------------------------------------------------------------------------------------------------


def torch_predict(model: nn.Module, device: torch.device | str, amp: torch.dtype | None = None) -> Predict:
    """A function that asks the model, which is moved to `device`; logits come back there, in float32.

    `amp` is the type that PyTorch's autocast may compute in. Every call runs in eval mode, and then each module has the
    mode back that it had before.
    """
    device = torch.device(device)
    model.to(device)

    def predict(images: Tensor) -> Tensor:
        autocast = torch.autocast(device.type, dtype=amp, enabled=amp is not None)
        with evaluating(model), torch.inference_mode(), autocast:
            return logits_of(model(images.to(device))).float()  # [n, classes]

    return predict


def onnx_predict(path: Path, provider: str = "cpu", threads: int = 0) -> Predict:
    """A function that asks the ONNX file at `path` in ONNX Runtime; logits come back on the CPU, in float32."""
    session = open_session(path, provider, threads)

    def predict(*inputs: Tensor) -> Tensor:
        answers = run_session(session, [tensor.numpy(force=True) for tensor in inputs])
        return torch.from_numpy(answers[0]).float()  # [n, classes]

    return predict


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share that was estimated as `correct` of `n`."""
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def accuracy(predict: Predict, batches: Iterable[Batch]) -> Accuracy:
    """Top-1, top-5 (from ten classes on) and mean cross-entropy over the images of all batches.

    Raises DataError when there are no images or a label is none of the network's classes, and VerificationFailed when
    the network answers NaN.
    """
    n, top1, top5, loss, classes = 0, 0, 0, 0.0, 0
    for batch in batches:
        logits = predict(batch.images)  # [n, classes]
        targets = batch.targets.to(logits.device)  # [n]
        classes = logits.shape[1]
        _check_answers(logits, targets)
        hits = logits.topk(min(5, classes)).indices == targets[:, None]  # [n, 5]
        n += len(targets)
        top1 += int(hits[:, 0].sum())
        top5 += int(hits.sum())
        loss += float(F.cross_entropy(logits, targets, reduction="sum"))
    _check_images(n)
    return Accuracy(top1 / n, *wilson(top1, n), n, top5=top5 / n if classes >= 10 else None, loss=loss / n)


def fidelity(original: Predict, compressed: Predict, batches: Iterable[Batch], inputs: str) -> Fidelity:
    """How close `compressed` answers to `original` on the images of all batches; `inputs` says what these are."""
    n, equal, divergence = 0, 0, 0.0
    for batch in batches:
        before, after = original(batch.images).cpu(), compressed(batch.images).cpu()  # [n, classes]
        n += len(before)
        equal += int((before.argmax(1) == after.argmax(1)).sum())
        divergence += float(F.kl_div(after.log_softmax(1), before.log_softmax(1), log_target=True, reduction="sum"))
    _check_images(n)
    return Fidelity(equal / n, max(divergence / n, 0.0), n, inputs)  # rounding can leave a sum just below zero


def _check_images(n: int) -> None:
    if n == 0:
        raise DataError("The networks' answers were to be compared, but there are no images: check the test data.")


def _check_answers(logits: Tensor, targets: Tensor) -> None:
    if logits.isnan().any():
        raise VerificationFailed("The network answers NaN: its weights are broken, or the training diverged.")
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise DataError(
            f"The network knows the classes 0 to {logits.shape[1] - 1}, but the labels go from {int(targets.min())} to "
            f"{int(targets.max())}: give the data it was trained for."
        )


# --- speed -----------------------------------------------------------------------------------------------------------


def latency(
    path: Path,
    inputs: AnyInputs,
    *,
    batches: Sequence[int] = (1, 32),
    threads: int = 1,
    provider: str = "cpu",
    runs: int = 100,
    warmup: int = 10,
    seconds: float = 5.0,
) -> list[Latency]:
    """`compare_latency` of one file."""
    return compare_latency(
        [path],
        inputs,
        batches=batches,
        threads=threads,
        provider=provider,
        runs=runs,
        warmup=warmup,
        seconds=seconds,
    )[0]


def compare_latency(
    paths: Sequence[Path],
    inputs: AnyInputs,
    *,
    batches: Sequence[int] = (1, 32),
    threads: int = 1,
    provider: str = "cpu",
    runs: int = 100,
    warmup: int = 10,
    seconds: float = 5.0,
) -> list[list[Latency]]:
    """For each file, ONNX Runtime's time for one batch of each size; the files take turns, run by run.

    A batch size gets `runs` runs of every file, but no more (though at least five) once `seconds` are over. Warming up
    takes at most `warmup` runs and a quarter of that time. On "cuda" the images lie on the GPU before the clock starts.
    """
    sessions = [open_session(path, provider, threads) for path in paths]
    by_batch = []
    for batch in batches:
        samples = [tensor.numpy() for tensor in Inputs.of(inputs).random(batch)]
        calls = [bound_run(session, samples, provider) for session in sessions]
        warm = len(take_turns(calls, most=warmup, least=1, seconds=seconds / 4)[0])
        by_batch.append(
            [
                Latency(batch, float(np.median(ms)), float(np.percentile(ms, 90)), len(ms), warm, provider, threads)
                for ms in take_turns(calls, most=runs, least=5, seconds=seconds)
            ]
        )
    return [list(of_one_file) for of_one_file in zip(*by_batch, strict=True)]


def take_turns(calls: Sequence[Callable[[], None]], most: int, least: int, seconds: float) -> list[list[float]]:
    """Milliseconds of each call's runs. Every second turn goes backwards, so that nobody always comes first."""
    milliseconds: list[list[float]] = [[] for _ in calls]
    turns = list(zip(calls, milliseconds, strict=True))
    start = time.perf_counter()
    for done in range(most):
        if done >= least and time.perf_counter() - start > seconds:
            break
        for call, of_call in turns if done % 2 == 0 else reversed(turns):
            before = time.perf_counter()
            call()
            of_call.append((time.perf_counter() - before) * 1000)
    return milliseconds
