"""Every value is compared with one that was counted by hand, or published."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, ViT_B_16_Weights, get_model

from compressor.data import Batch
from compressor.errors import UsageError
from compressor.network.cost import count_macs, count_params, layer_macs, peak_activation_bytes, weight_bytes
from compressor.network.outputs import torch_predict
from compressor.onnx.export import export_onnx
from compressor.onnx.latency import Timing, clock_of_thread, compare_latency, latency, take_turns
from compressor.onnx.runtime import onnx_predict
from compressor.tasks.classify import Classify
from compressor.tasks.meter import wilson


class Small(nn.Module):
    """[n, 1, 8, 8] -> logits [n, 10]; the head is a bare parameter, so its MACs belong to no layer."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.head = nn.Parameter(torch.randn(10, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.bn(self.conv(x))).mean((2, 3)), self.head)


class Choosy(Small):
    """Its control flow depends on values, so it cannot run without data."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() >= 0 else -x)


CONV, HEAD = 8 * 8 * 4 * 9, 4 * 10


def digits(n: int) -> Batch:
    images, targets = load_digits(return_X_y=True)
    shaped = torch.tensor(images[:n], dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return Batch(shaped, torch.tensor(targets[:n]), torch.arange(n))


def answers(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def labelled(*targets: int) -> Batch:
    return Batch(torch.zeros(len(targets), 1, 8, 8), torch.tensor(targets), torch.arange(len(targets)))


# --- cost ------------------------------------------------------------------------------------------------------------


def test_macs_are_those_counted_by_hand() -> None:
    assert count_macs(Small(), (1, 8, 8)) == CONV + HEAD
    assert layer_macs(Small(), (1, 8, 8)) == {"": HEAD, "conv": CONV}


def test_a_list_of_layers_is_no_layer() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False)
    macs = layer_macs(model, (5, 8))
    of_one_layer = {"self_attn", "linear1", "linear2"}
    assert set(macs) == {f"layers.{i}.{name}" for i in (0, 1) for name in of_one_layer}
    assert sum(macs.values()) == count_macs(model, (5, 8))
    assert macs["layers.1.linear1"] == 5 * 8 * 16


class Borrowing(nn.Module):
    """`second` calls `first`, which is no child of it."""

    class Second(nn.Module):
        def __init__(self, first: nn.Module) -> None:
            super().__init__()
            self.conv, self.first = nn.Conv2d(3, 3, 1), [first]

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.first[0](x))

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3)
        self.second = self.Second(self.first)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x)


def test_a_layer_that_another_module_calls_counts_once() -> None:
    assert layer_macs(Borrowing(), (3, 10, 10)) == {"first": 8 * 8 * 3 * 3 * 9, "second.conv": 8 * 8 * 3 * 3}
    assert count_macs(Borrowing(), (3, 10, 10)) == 8 * 8 * 3 * 3 * 10


class Branching(nn.Module):
    """Three convolutions or one, by the values of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.conv(self.conv(self.conv(x))), lambda x: self.conv(x), (x,))  # type: ignore[no-any-return]


def test_of_two_branches_the_larger_one_counts() -> None:
    assert count_macs(Branching(), (3, 10, 10)) == 3 * 10 * 10 * 3 * 3


def test_a_parameter_as_an_argument_is_no_obstacle() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.layer = nn.Parameter(torch.zeros(1, 8)), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.token.expand(len(x), -1)) + x.mean()

    assert count_macs(Token(), (8,)) == 8 * 4


@pytest.mark.parametrize(("name", "weights"), [("resnet18", ResNet18_Weights), ("vit_b_16", ViT_B_16_Weights)])
def test_macs_and_params_are_the_published_ones(name: str, weights: type) -> None:
    model, published = get_model(name, weights=None), weights.DEFAULT.meta
    assert round(count_macs(model, (3, 224, 224)) / 1e9, 3) == weights.IMAGENET1K_V1.meta["_ops"]
    assert count_params(model) == published["num_params"]
    assert sum(layer_macs(model, (3, 224, 224)).values()) == count_macs(model, (3, 224, 224))


def test_a_network_that_looks_at_values_is_counted_on_real_data() -> None:
    assert count_macs(Choosy(), (1, 8, 8)) == CONV + HEAD
    assert peak_activation_bytes(Choosy(), (1, 8, 8)) == 64 * 4 + 2 * (4 * 64 * 4)  # image, convolution, batch norm


def test_transformer_layers_are_counted_on_real_data_too() -> None:
    class Tokens(nn.TransformerEncoderLayer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() >= 0 else -x)

    plain = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert count_macs(Tokens(8, 2, 16, batch_first=True), (5, 8)) == count_macs(plain, (5, 8)) > 0


def test_a_wrong_image_shape_is_said_in_two_lines() -> None:
    with pytest.raises(UsageError, match="does not run on images of 3x8x8") as caught:
        count_macs(Small(), (3, 8, 8))
    assert len(str(caught.value).splitlines()) == 2


def test_counting_leaves_the_model_alone() -> None:
    model = Small().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_macs(model, (1, 8, 8))
    peak_activation_bytes(model, (1, 8, 8))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training and model.bn.training


def test_shared_weights_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert count_params(model) == 16
    assert weight_bytes(model) == 64


def test_weight_bytes_include_buffers_in_their_own_types() -> None:
    counter = 8  # the number of batches a batch norm has seen is one int64
    assert weight_bytes(nn.BatchNorm2d(4)) == 4 * 4 * 4 + counter
    assert weight_bytes(nn.Linear(4, 4, bias=False).half()) == 32


def test_peak_is_the_largest_sum_of_tensors_alive() -> None:
    image, wide = 64 * 4, 4 * 64 * 4
    apart = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))
    in_place = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(inplace=True), nn.Flatten())
    assert peak_activation_bytes(apart, (1, 8, 8)) == image + wide + wide
    assert peak_activation_bytes(in_place, (1, 8, 8)) == image + wide


# --- quality ---------------------------------------------------------------------------------------------------------


def test_wilson_is_newcombes_example() -> None:
    """R. G. Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 0 of 20, method 3."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_predicting_gives_every_module_its_mode_back() -> None:
    model = Small().train()
    model.conv.eval()
    before = model.bn.running_mean.clone()
    logits = torch_predict(model, "cpu", torch.bfloat16)(digits(4).inputs)
    assert logits.dtype == torch.float32 and logits.shape == (4, 10)
    assert model.training and model.bn.training and not model.conv.training
    assert torch.equal(model.bn.running_mean, before)


# --- latency and outputs in ONNX Runtime -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Small]:
    """A narrow network, and one with a hundred times its MACs."""
    folder = tmp_path_factory.mktemp("onnx")
    narrow, wide = Small(), Small(400)
    export_onnx(narrow, (1, 8, 8), folder / "narrow.onnx")
    export_onnx(wide, (1, 8, 8), folder / "wide.onnx")
    return folder / "narrow.onnx", folder / "wide.onnx", narrow


def test_onnx_runtime_measures_the_same_accuracy(files: tuple[Path, Path, Small]) -> None:
    narrow, _, model = files
    here = Classify().measure(onnx_predict(narrow, threads=1), [digits(200)]).compute()
    there = Classify().measure(torch_predict(model, "cpu"), [digits(200)]).compute()
    assert [score.name for score in here] == ["top1", "top5", "loss"]
    assert [score.value for score in here[:2]] == [score.value for score in there[:2]]
    assert here[2].value == pytest.approx(there[2].value, rel=1e-5)


def test_more_work_takes_longer(files: tuple[Path, Path, Small]) -> None:
    narrow, wide, _ = files
    of_narrow, of_wide = compare_latency([narrow, wide], (1, 8, 8), Timing((1, 16), runs=20))
    assert [entry.batch for entry in of_narrow] == [1, 16]
    for small, large in zip(of_narrow, of_wide, strict=True):
        assert 0 < small.median_ms < large.median_ms <= large.p90_ms
        assert (small.runs, small.warmup, small.provider, small.threads) == (20, 10, "cpu", 1)
        assert small.clock == "processor time"


def test_processor_time_does_not_advance_while_others_run(files: tuple[Path, Path, Small]) -> None:
    """Sleep stands for the time slices of other processes."""

    def interrupted() -> None:
        time.sleep(0.02)

    (wall,), (own,) = (take_turns([interrupted], 3, 3, 9.0, clock) for clock in (time.perf_counter, clock_of_thread))
    assert min(wall) >= 20 and max(own) < 10


def test_a_second_batch_size_is_left_out_where_it_takes_too_long_or_too_much_memory(
    files: tuple[Path, Path, Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = Timing(runs=3)
    both = latency(files[0], (1, 8, 8), timing)
    assert [one.batch for one in both] == [1, 32] and timing.left_out(both) == []
    ((one,),) = compare_latency([files[0]], (1, 8, 8), timing, image_bytes=2**60)
    assert one.batch == 1
    (note,) = timing.left_out([one], 2**60)
    assert note.startswith("latency at batch 32 was not measured: activations take about ")
    monkeypatch.setattr("compressor.onnx.latency.LONGEST", 0.0)
    (one,) = latency(files[0], (1, 8, 8), timing)
    slow = replace(one, median_ms=125.0)
    (note,) = timing.left_out([slow])
    assert note == ("latency at batch 32 was not measured: a run would take about 4.00 s (--latency-batches 1,32 measures it)")
    asked = latency(files[0], (1, 8, 8), Timing((2, 8), runs=3))
    assert [one.batch for one in asked] == [2, 8]
    assert timing.left_out([replace(one, batch=4)]) == [], "the batch size of a file that has a fixed one"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("1,x", 1, "cpu", 100), "--latency-batches are batch sizes, 1 or more, as in 1,8; found '1,x'"),
        (("0", 1, "cpu", 100), "--latency-batches are batch sizes, 1 or more, as in 1,8; found 0"),
        ((None, 0, "cpu", 100), "--latency-threads must be 1 or more; found 0"),
        ((None, 1, "tpu", 100), "--latency-provider tpu is unknown: use cpu or cuda"),
        ((None, 1, "cpu", 0), "--latency-runs must be 1 or more; found 0"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(settings: tuple[str | None, int, str, int], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Timing.parse(*settings)
    assert words in str(caught.value)


def test_time_is_bounded_but_some_runs_are_always_made(files: tuple[Path, Path, Small]) -> None:
    (measured,) = latency(files[0], (1, 8, 8), Timing((1,), runs=10**6, seconds=0.0))
    assert (measured.runs, measured.warmup) == (3, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_a_missing_gpu_is_an_error_and_not_a_page_of_logs(
    files: tuple[Path, Path, Small], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="cannot run on 'cuda'"):
        latency(files[0], (1, 8, 8), Timing(provider="cuda"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_is_really_used(files: tuple[Path, Path, Small]) -> None:
    narrow, _, model = files
    assert latency(narrow, (1, 8, 8), Timing(provider="cuda", runs=5))[0].provider == "cuda"
    images = digits(8).inputs
    assert torch.allclose(onnx_predict(narrow, "cuda")(images), torch_predict(model, "cpu")(images), atol=1e-2)


def test_what_cannot_run_is_said_plainly(files: tuple[Path, Path, Small], tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(UsageError, match=r"text\.onnx cannot be opened"):
        onnx_predict(tmp_path / "text.onnx")
    with pytest.raises(UsageError, match="'tpu'"):
        onnx_predict(files[0], "tpu")
    with pytest.raises(UsageError, match="inputs of 2x3x8x8"):
        onnx_predict(files[0])(torch.zeros(2, 3, 8, 8))
