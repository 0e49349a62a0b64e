"""Only networks for images run, inputs are cast to their types, and errors are two lines."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from compressor.errors import UsageError, first_line
from compressor.onnx.runtime import bound_run, open_session, run_session


def write(path: Path, inputs: str, graph: str) -> Path:
    text = f'<ir_version: 8, opset_import: ["" : 18]> net ({inputs}) => (float16[n, 2] logits) {{ {graph} }}'
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_images_are_given_in_the_format_the_network_takes(tmp_path: Path) -> None:
    session = open_session(write(tmp_path / "half.onnx", "float16[n, 2] x", "logits = Add(x, x)"))
    (logits,) = run_session(session, [np.ones((3, 2), dtype=np.float32)])
    assert logits.dtype == np.float16 and logits.tolist() == [[2, 2]] * 3
    bound_run(session, [np.ones((3, 2), dtype=np.float32)], "cpu")()


def test_several_inputs_are_given_in_the_file_s_order_and_in_its_formats(tmp_path: Path) -> None:
    graph = "y = Cast <to = 10> (ids) logits = Sub(x, y)"
    session = open_session(write(tmp_path / "two.onnx", "float16[n, 2] x, int64[n, 2] ids", graph))
    samples = [np.full((3, 2), 5.0), np.full((3, 2), 3, dtype=np.int32)]
    (logits,) = run_session(session, samples)
    assert logits.tolist() == [[2, 2]] * 3
    bound_run(session, samples, "cpu")()
    with pytest.raises(UsageError, match=r"takes 2 inputs \(x, ids\), but got 1"):
        run_session(session, samples[:1])


def test_a_network_for_something_else_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "words.onnx", "string[n, 2] words", "logits = Cast <to = 10> (words)")
    with pytest.raises(UsageError, match=r"should take tensors of numbers, but takes words: tensor\(string\)"):
        open_session(path)


def test_a_batch_that_does_not_fit_is_named_in_two_lines(tmp_path: Path) -> None:
    session = open_session(write(tmp_path / "half.onnx", "float16[n, 2] x", "logits = Add(x, x)"))
    for run in (lambda wrong: run_session(session, [wrong]), lambda wrong: bound_run(session, [wrong], "cpu")()):
        with pytest.raises(UsageError, match="does not run on inputs of 3x5") as caught:
            run(np.ones((3, 5), dtype=np.float32))
        assert len(str(caught.value).splitlines()) == 2


def test_the_first_line_is_of_the_deepest_cause() -> None:
    try:
        try:
            raise ValueError("These do not fit:\n - 2\n - 3\nlong story")
        except ValueError as cause:
            raise RuntimeError("export failed") from cause
    except RuntimeError as error:
        assert first_line(error) == "ValueError: These do not fit: - 2"
    assert first_line(KeyError()) == "KeyError"
