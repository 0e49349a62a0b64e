"""Every method, training and repair on a GPU that is only pretended: no tensor is left on the CPU where others are not."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_gpu import place, pretended
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import VisionTransformer, resnet18
from toy import Random, Toy, Wide, batches, job, optimizer

from compressor.channels import Cut, analyse, surgery, verify
from compressor.data import Batch, open_data
from compressor.demo import DigitsNet
from compressor.errors import UsageError
from compressor.methods.catalogue import Entry, catalogue, create
from compressor.methods.distill.teaching import Teacher
from compressor.methods.lowrank.decompositions import SPLITS
from compressor.methods.lowrank.verify import gap_between
from compressor.network.meta_device import frozen
from compressor.network.replacements import replaced
from compressor.recovery.recalibrate import recalibrate
from compressor.recovery.repair import refit
from compressor.runs.journal import Journal
from compressor.runs.sources import device_errors
from compressor.training.method import Job, Method, Progress
from compressor.training.recipe import Recipe
from compressor.training.train import Training, to_channels_last

GPU = torch.device("cuda:1")  # not the first one, which would be the current device


@dataclass(frozen=True)
class There(Random):
    """Random images on the device that is asked for."""

    def batches(self, split: str, *, device: torch.device = GPU, **more: Any) -> Iterator[Batch]:
        return (moved(batch, device) for batch in super().batches(split, **more))


def moved(batch: Batch, device: torch.device = GPU) -> Batch:
    return Batch(*(tensor.to(device) for tensor in batch[:3]))


def task(entry: Entry) -> Job:
    """As the commands make it: networks that have been measured on the GPU."""
    if entry.family != "distill":
        net = Wide() if entry.family == "lowrank" else Toy()
        return job("weights=50%" if entry.weights else "macs=30%", net, images=There())
    teacher = Toy().to(GPU) if entry.teacher_is != "none" else None
    return replace(job("macs=30%", Toy(), images=There()), channels=None, teacher=teacher)


def elsewhere(method: Method) -> list[str]:
    """Tensors that are not where they should be."""
    kept = [*method.named_parameters(), *method.named_buffers()]
    hidden = [("teacher", p) for part in method.modules() if isinstance(part, Teacher) for p in part.network.parameters()]
    return [name for name, tensor in (*kept, *hidden) if place(tensor) != GPU]


ALIKE = (
    "ahbf asfp asrfp cp cpmc dist dkd dml hfp hsakd hssakd lamp lrdkt sfp srfp svd".split()
)  # as others that are tried, or slow


@pytest.mark.parametrize("entry", [e for e in catalogue().values() if e.name not in ALIKE], ids=lambda entry: entry.name)
def test_a_method_stays_on_the_gpu(entry: Entry) -> None:
    torch.manual_seed(0)
    with pretended():
        method = create(entry, task(entry), {}).to(GPU)
        method.first()
        method.prepare()
        if (
            entry.family == "distill" or entry.weights
        ):  # PyTorch 2.15 on the CPU overwrites memory in that layout when there are few channels
            method.to(memory_format=torch.channels_last)
        sgd = optimizer(method)
        for epoch in range(epochs := 2 if entry.family == "prune" else 1):
            method.train()
            method.begin_epoch(Progress(epoch, epochs))
            batch = moved(next(batches(1, seed=epoch)))
            torch.stack(list(method.loss(batch).values())).sum().backward()
            method.edit_gradients()
            sgd.step()
            method.end_step(batch)
            method.end_epoch(Progress(epoch, epochs))
        assert not elsewhere(method)
        small = method.finish()
        assert {place(tensor) for tensor in small.parameters()} == {GPU}
        assert small.eval()(batch.inputs).device == GPU


@pytest.mark.parametrize(
    ("name", "more"), [("ghfp", {}), ("slimming", {"ema_decay": 0.5, "optimizer": "adamw", "cutout": 0.3, "amp": "none"})]
)
def test_training_is_taken_up_on_the_gpu(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    """The state comes from a file by way of the CPU. Methods that shrink take their optimizer's state with them."""
    data = open_data("digits")
    recipe = Recipe(epochs=2, batch_size=700, lr=0.05, channels_last=False, **more)

    def begun() -> Training:
        torch.manual_seed(0)
        task = job("filters=40%", DigitsNet(8), data.shape, images=data)
        method = create(catalogue()[name], task, {}).to(GPU)
        method.prepare()
        return Training(method, data, recipe, GPU, tmp_path / "state.pt")

    class Stop(Journal):
        def epoch_ended(self, *_: object) -> None:
            raise KeyboardInterrupt

    with pretended():
        with pytest.raises(KeyboardInterrupt):
            begun().run(Stop())
        training = begun()
        assert training.resume() and len(training.history) == 1
        training.run(Journal())
        assert not elsewhere(training.method)
        assert training.ema is None or {place(p) for p in training.ema.module.parameters()} == {GPU}
        moments = [
            t for state in training.optimizer.state.values() for t in state.values() if isinstance(t, Tensor) and t.dim()
        ]
        assert moments and {place(t) for t in moments} == {GPU}


def test_what_was_cut_is_repaired_on_the_gpu() -> None:
    with pretended():
        method = create(catalogue()["magnitude"], job("macs=30%", images=There()), {}).to(GPU)
        bare = copy.deepcopy(method.model)
        method.prepare()
        small, cut = copy.deepcopy(method.model), method.made().step
        assert isinstance(cut, Cut)
        seen = [moved(batch) for batch in batches(4)]
        assert recalibrate(small, seen) == 32
        original = frozen(bare, GPU)
        assert refit(original, method.model, cut, seen, method.job.inputs).layers
        assert {place(tensor) for tensor in method.model.state_dict().values()} == {GPU}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda there: there + torch.ones(3),
        lambda there: there + torch.zeros(3, device="cuda"),
        lambda there: torch.ones(3)[there.long()],
        lambda there: there.index_select(0, torch.tensor([0])),
        lambda there: torch.stack([there.sum(), torch.zeros(())]),
        lambda there: torch.zeros(()).add_(there.sum()),
        lambda there: there.numpy(),
        lambda there: torch.randn(3, generator=torch.Generator(), device=GPU),
        lambda there: nn.Linear(3, 2)(there),
    ],
)
def test_what_a_gpu_refuses_is_refused(wrong: Callable[[Tensor], object]) -> None:
    with pretended(), pytest.raises((RuntimeError, TypeError), match="device"):
        wrong(torch.zeros(3, device=GPU))


def test_what_a_gpu_allows_is_allowed() -> None:
    with pretended():
        there = torch.arange(3.0, device=GPU)
        assert (there + torch.ones(())).device == there[torch.tensor([0, 2])].device == (there * 2)[:1].device == GPU
        assert there.cpu().numpy().tolist() == there.tolist() == [0, 1, 2] and float(there.sum()) == 3
        assert torch.zeros(3).copy_(there).device == there.cpu().device == torch.zeros(3).to(there.cpu()).device
        layer = nn.Linear(3, 2).to(GPU)
        layer(there).sum().backward()
        assert layer.weight.grad is not None
        assert {t.device for t in (layer.weight, layer.weight.grad, copy.deepcopy(layer).bias)} == {GPU}
        assert {p.device.type for p in layer.cpu().parameters()} == {"cpu"}


# Memory, clock, layout and precision of a GPU ---------------------------------------------------------------------------


def test_full_memory_is_no_reason_to_hold_a_group_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    real = verify._difference

    def full(model: nn.Module, small: nn.Module, cut: Any, *more: Any) -> Any:
        if len(cut.kept) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(model, small, cut, *more)

    monkeypatch.setattr(verify, "_difference", full)
    with pytest.raises(torch.OutOfMemoryError):
        create(catalogue()["magnitude"], job("macs=30%"), {}).prepare()


@pytest.mark.parametrize(("device", "waited_for"), [(GPU, {GPU}), (torch.device("cpu"), set())])
def test_a_teacher_is_timed_on_its_own_device(device: torch.device, waited_for: set[torch.device]) -> None:
    waited: list[Any] = []
    with pretended(waited):
        task = replace(job("macs=30%", Toy(), images=There()), channels=None, teacher=Toy())
        method = create(catalogue()["kd"], task, {}).to(device)
        for batch in batches(6):
            method.loss(moved(batch, device))  # type: ignore[operator]
    assert set(waited) == waited_for


def test_masks_of_single_weights_do_not_mind_the_layout() -> None:
    method = create(catalogue()["srwp"], job("weights=50%"), {})
    method.prepare()
    method.to(memory_format=torch.channels_last)
    method.end_epoch(Progress(1, 2))


def test_hypergradients_go_through_attention() -> None:
    net = VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
    method = create(catalogue()["l_mcl"], replace(job("macs=30%", net, (3, 32, 32)), channels=None), {})
    method.begin_epoch(Progress(0, 2))
    method.end_step(next(batches(1, (3, 32, 32))))


class TF32(TorchDispatchMode):
    """Convolutions of float32 read numbers of 10 bits, as cuDNN has it by default."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) == "aten.convolution.default" and args[0].dtype == torch.float32 and torch.backends.cudnn.allow_tf32:
            args = (*(((t.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) for t in args[:2]), *args[2:])
        return func(*args, **(kwargs or {}))


class Casting(nn.Module):
    """A network whose code asks for float32, so that it cannot be compared in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = resnet18(num_classes=10)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.float())


def test_a_cut_is_proved_in_full_precision() -> None:
    torch.manual_seed(0)
    model, shape = Casting().eval(), (3, 64, 64)
    channels = analyse(model, shape)
    cut = surgery.plan(model, channels, torch.rand(channels.atoms).numpy() > 0.4)
    with TF32():
        assert verify.difference(model, surgery.apply(model, cut), cut, shape) < verify.TOLERANCE


def test_factored_layers_are_proved_in_full_precision() -> None:
    torch.manual_seed(0)
    model, split = Casting().eval(), SPLITS["channel"]
    chain = split.factor(model.inner.layer1[0].conv1, 16)
    dense = copy.deepcopy(model)
    dense.inner.layer1[0].conv1.weight = nn.Parameter(split.dense(chain).float())
    with TF32():
        assert gap_between(dense, replaced(model, {"inner.layer1.0.conv1": chain}), (3, 64, 64)) < verify.TOLERANCE


class Video(nn.Module):
    """Has parameters of four and of five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.deep = nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3)


def test_only_tensors_of_four_dimensions_become_channels_last() -> None:
    network = Video()
    weights = network.flat.weight.detach().clone()
    to_channels_last(network)
    assert network.flat.weight.is_contiguous(memory_format=torch.channels_last) and torch.equal(network.flat.weight, weights)
    assert network.deep.weight.is_contiguous()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "Lower --batch-size"),
        (
            RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu!"),
            "on the device of its input",
        ),
    ],
)
def test_an_error_of_the_device_is_two_lines(error: Exception, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught, device_errors():
        raise error
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(RuntimeError, match="another"), device_errors():
        raise RuntimeError("another error is not changed")


def test_images_that_a_function_returns_on_the_gpu_come_to_the_cpu(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def data():\n"
        "    images = [(torch.full((3, 8, 8), i / 20, device='cuda:1'), i % 2) for i in range(20)]\n"
        "    return {'train': images, 'test': images}\n"
    )
    with pretended():
        data = open_data(f"{tmp_path / 'mine.py'}:data", mean=(0.5,) * 3, std=(0.5,) * 3)
        batch = next(iter(data.batches("test", batch_size=4, device=torch.device("cpu"))))
        assert place(batch.inputs) == torch.device("cpu")
