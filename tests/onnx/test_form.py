"""The form of ONNX files: open and fixed batch sizes, open height and width, and how files of each form are run."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.errors import Infeasible, UsageError, VerificationFailed
from compressor.network.inputs import Inputs
from compressor.onnx.export import Exported, check_onnx, export_onnx, export_verified
from compressor.onnx.form import ExportForm, WishedForm, candidates, other_size, resized
from compressor.onnx.latency import Timing, compare_latency
from compressor.onnx.quantizer import Reader
from compressor.onnx.runtime import fixed_batch, onnx_predict, open_session, run_session

SHAPE = (1, 16, 24)
EVEN = ExportForm(None, ("height", "width"))


class UShaped(nn.Module):
    """Maps of the size of the image, whose sides must be multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 4, 4, stride=4)
        self.up = nn.ConvTranspose2d(4, 2, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.up(self.down(x).relu())], 1)


class OneSize(UShaped):
    """A map, but for images of 16 x 24 alone, as with a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 1, 16, 24))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.table)


class Looping(UShaped):
    """Runs image by image: the exporter unrolls the loop."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(Looping, self).forward(x[i : i + 1]) for i in range(len(x))])


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


def sizes(path: Path) -> list[str | int]:
    (images,) = onnx.load(path).graph.input
    return [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]


def made(model: nn.Module, path: Path, wish: WishedForm | None = None) -> Exported:
    torch.manual_seed(0)
    return export_verified(model.eval(), SHAPE, path, wish)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


# What is tried --------------------------------------------------------------------------------------------------------


def test_another_size_keeps_the_factors_that_the_network_needs() -> None:
    inputs = Inputs.of(SHAPE)
    other = other_size(UShaped(), inputs, ("height", "width"))
    assert other is not None and other.each[0].shape == (1, 32, 40)
    assert [side % 4 for side in other.each[0].shape[1:]] == [0, 0]
    only = other_size(UShaped(), inputs, ("width",))
    assert only is not None and only.each[0].shape == (1, 16, 40)
    odd = other_size(nn.Sequential(nn.Unflatten(2, (5, 3)), nn.Flatten(2, 3)), Inputs.of((1, 15, 15)), ("width",))
    assert odd is not None and odd.each[0].shape == (1, 15, 17)
    thirds = nn.Sequential(nn.PixelUnshuffle(3), nn.PixelShuffle(3))
    multiple = other_size(thirds, Inputs.of((1, 9, 9)), ("height", "width"))
    assert multiple is not None and multiple.each[0].shape == (1, 18, 27)
    assert other_size(OneSize(), inputs, ("height", "width")) is None
    assert other_size(Classifier(), inputs, ("height", "width")) is None
    assert other_size(Classifier(), inputs, ("height", "width"), maps_alone=False) is not None


def test_real_images_are_resized_for_the_other_size() -> None:
    inputs = Inputs(Inputs.of(SHAPE).each, images=torch.full((3, *SHAPE), 0.25))
    (sample,) = resized(inputs, 32, 40).random(2)
    assert sample.shape == (2, 1, 32, 40) and torch.all(sample == 0.25)


def test_the_most_open_form_is_tried_first() -> None:
    def tried(model: nn.Module, wish: WishedForm) -> list[ExportForm]:
        return [form for form, _ in candidates(model, Inputs.of(SHAPE), wish)]

    assert tried(UShaped(), WishedForm()) == [EVEN, ExportForm(), ExportForm(1, EVEN.sides), ExportForm(1)]
    assert tried(Classifier(), WishedForm()) == [ExportForm(), ExportForm(1)]
    assert tried(Classifier(), WishedForm(batch=4)) == [ExportForm(4)]
    assert tried(UShaped(), WishedForm((), 4)) == [ExportForm(4)]
    assert tried(Classifier(), WishedForm(("width",))) == [ExportForm(None, ("width",)), ExportForm(1, ("width",))]
    with pytest.raises(Infeasible, match="--dynamic height,width: the network does not run on other images than 1x16x24"):
        tried(OneSize(), WishedForm(("height", "width")))


@pytest.mark.parametrize("text", ["", "depth", "height;width", "height,height", "both"])
def test_what_is_no_side_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--dynamic .* is unknown: use height,width, or one of them, or none"):
        WishedForm.parse(text, None)


def test_options_are_read_and_written() -> None:
    assert WishedForm.parse("width, height", None).sides == ("height", "width")
    assert [str(WishedForm.parse(text, 2)) for text in ("none", "width", "height,width")] == ["none", "width", "height,width"]
    assert WishedForm.parse(None, None) == WishedForm() and str(WishedForm()) == ""
    with pytest.raises(UsageError, match="--onnx-batch is a batch size, 1 or more; found 0"):
        WishedForm.parse(None, 0)


# What is written ------------------------------------------------------------------------------------------------------


def test_a_map_is_open_in_height_and_width_and_checked_at_two_sizes(path: Path) -> None:
    found = made(UShaped(), path)
    assert (found.form, found.notes, sizes(path)) == (EVEN, [], ["batch", 1, "height", "width"])
    assert set(found.differences) == {"1", "2", "3", "1 of 32 x 40", "2 of 32 x 40"}
    assert onnx_predict(path)(torch.zeros(2, 1, 48, 20)).shape == (2, 3, 48, 20)


def test_a_classifier_keeps_its_size_unless_it_is_asked_for(path: Path) -> None:
    assert made(Classifier(), path).form == ExportForm() and sizes(path) == ["batch", 1, 16, 24]
    assert made(Classifier(), path, WishedForm(("height", "width"), 1)).differences.keys() == {"1", "1 of 32 x 40"}
    assert sizes(path) == [1, 1, "height", "width"]


def test_a_loop_over_the_batch_is_written_for_one_image_and_the_file_takes_any_number(path: Path) -> None:
    model = Looping().eval()
    found = made(model, path)
    assert found.form.batch == 1 and sizes(path)[:2] == [1, 1]
    (note,) = found.notes
    assert note.startswith("the ONNX file takes a batch size of 1") and "with any batch size and any height and width: " in note
    assert "\n" not in note and set(found.differences) >= {"1"}
    images = torch.randn(5, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(onnx_predict(path)(images), model(images), rtol=1e-4, atol=1e-4)
    (latencies,) = compare_latency([path], SHAPE, Timing(runs=5))
    assert [latency.batch for latency in latencies] == [1]


def test_a_file_that_is_wrong_for_other_batches_falls_back_to_one_image(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SwinIR's: the exporter takes a number of the traced batch for a constant, and does not tell."""
    real = export_onnx

    def careless(model: nn.Module, inputs: object, file: Path, form: ExportForm, other: Inputs | None) -> None:
        real(model, inputs, file, form, other)
        if form.batch is None:
            proto = onnx.load(file)
            proto.graph.initializer[0].CopyFrom(
                onnx.numpy_helper.from_array(
                    1.1 * onnx.numpy_helper.to_array(proto.graph.initializer[0]), proto.graph.initializer[0].name
                )
            )
            onnx.save(proto, file)

    monkeypatch.setattr("compressor.onnx.export.export_onnx", careless)
    found = made(UShaped(), path)
    assert found.form == ExportForm(1, ("height", "width")) and "differs from PyTorch by" in found.notes[0]


def test_a_fixed_batch_that_was_asked_for_is_not_remarked_on(path: Path) -> None:
    found = made(Classifier(), path, WishedForm(batch=3))
    assert (found.form, found.notes, sizes(path)) == (ExportForm(3), [], [3, 1, 16, 24])
    assert set(found.differences) == {"3"}


def test_a_file_of_another_form_is_found_out(path: Path) -> None:
    model = Classifier().eval()
    export_onnx(model, SHAPE, path, ExportForm(3))
    with pytest.raises(VerificationFailed, match="has a fixed batch size of 3: export it again with a dynamic batch size"):
        check_onnx(model, path, SHAPE)
    with pytest.raises(VerificationFailed, match="has a fixed batch size of 3: export it again with a batch size of 1"):
        check_onnx(model, path, SHAPE, form=ExportForm(1))
    export_onnx(UShaped(), SHAPE, path)
    inputs = Inputs.of(SHAPE)
    with pytest.raises(VerificationFailed, match="fails for a batch of 1 images"):
        check_onnx(UShaped(), path, inputs, form=EVEN, other=resized(inputs, 32, 40))


def test_when_no_form_can_be_written_the_first_reason_is_told(path: Path) -> None:
    class Branching(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() >= 0 else -x)

    with pytest.raises(Infeasible, match="cannot write this network as ONNX with any batch size") as caught:
        made(Branching(), path)
    assert len(str(caught.value).splitlines()) == 2 and not path.exists()


# How files are run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_a_fixed_batch_is_filled_up_and_cut(path: Path, count: int) -> None:
    model = Classifier().eval()
    export_onnx(model, SHAPE, path, ExportForm(3))
    session, images = open_session(path), torch.randn(count, *SHAPE)
    assert fixed_batch(session) == 3
    with torch.no_grad():
        np.testing.assert_allclose(run_session(session, [images.numpy()])[0], model(images).numpy(), rtol=1e-4, atol=1e-5)


def test_inputs_are_fed_by_name(path: Path) -> None:
    class Difference(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return F.relu(first - 2 * second).flatten(1)

    inputs = Inputs.of({"first": (3,), "second": (3,)})
    export_onnx(Difference(), inputs, path)
    one, two = torch.randn(2, 2, 3)
    session, expected = open_session(path), F.relu(one - 2 * two).numpy()
    for named in ({"first": one.numpy(), "second": two.numpy()}, {"second": two.numpy(), "first": one.numpy()}):
        np.testing.assert_allclose(run_session(session, named)[0], expected, rtol=1e-5)
    predict = onnx_predict(path)
    for found in (predict(one, two), predict(second=two, first=one), predict(one, second=two), predict(two, first=one)):
        assert torch.allclose(found, torch.from_numpy(expected))
    with pytest.raises(UsageError, match=r"takes 2 inputs \(first, second\), but got 3"):
        predict(one, two, first=one)
    with pytest.raises(UsageError, match=r"takes 2 inputs \(first, second\), but got 1"):
        predict(one)
    with pytest.raises(UsageError, match="takes first, second, but got third"):
        predict(one, third=two)
    with pytest.raises(UsageError, match="takes first, second, but got third"):
        run_session(session, {"first": one.numpy(), "third": two.numpy()})


def test_outputs_that_are_no_rows_are_not_put_together(path: Path) -> None:
    class Total(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    export_onnx(Total(), SHAPE, path, ExportForm(2))
    with pytest.raises(UsageError, match="a fixed batch size of 2 and outputs that are not one row per image"):
        run_session(open_session(path), [np.zeros((3, *SHAPE), np.float32)])


def test_files_of_different_fixed_batches_are_not_timed_together(tmp_path: Path) -> None:
    for n in (1, 2):
        export_onnx(Classifier(), SHAPE, tmp_path / f"{n}.onnx", ExportForm(n))
    with pytest.raises(UsageError, match="Files with the fixed batch sizes 1, 2 cannot be timed together"):
        compare_latency([tmp_path / "1.onnx", tmp_path / "2.onnx"], SHAPE)


def test_calibration_fills_up_the_last_batch() -> None:
    class Images:
        def __iter__(self):
            return iter([Batch(torch.arange(3.0)), Batch(torch.arange(2.0))])

        def __len__(self) -> int:
            return 2

    class Batch:
        def __init__(self, inputs: Tensor) -> None:
            self.inputs = inputs

    reader = Reader(["images"], Images(), fixed=3)  # type: ignore[arg-type]
    reader.set_range(0, 2)
    assert [reader.get_next()["images"].tolist() for _ in range(2)] == [[0, 1, 2], [0, 1, 1]]
    assert reader.get_next() is None
