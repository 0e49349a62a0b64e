"""The commands that change nothing: eval, export, inspect, methods; and `compress` itself."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from small import compress, make_net

import compressor
from compressor.methods.catalogue import catalogue
from compressor.report import read_report

NET = ("net.pt", "--arch", "net.py:Net")


@pytest.fixture
def here(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project with a finished run in `half`, as working directory."""
    monkeypatch.chdir(finished)
    return finished


# eval -----------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_measured_through_both_engines(here: Path) -> None:
    result = compress("eval", *NET, "--data", "digits", "--json")
    assert result.exit_code == 0, result.output
    found, baseline = json.loads(result.stdout), read_report(here / "half").baseline
    assert baseline.scores
    assert found["torch"]["top1"] == found["onnx"]["top1"] == baseline.scores[0].value
    assert (found["macs"], found["params"], found["size_bytes"]) == (baseline.macs, baseline.params, baseline.size_bytes)
    assert [row["batch"] for row in found["latency"]] == [1, 32]


def test_a_run_is_measured_and_printed_for_people(here: Path) -> None:
    result = compress("eval", "half", "--data", "digits")
    assert result.exit_code == 0, result.output
    top1 = read_report(here / "half").compressed.scores[0].value
    for words in ("Top-1, PyTorch", "Top-1, ONNX Runtime", "of 359 test images", f"{100 * top1:.2f} %", "MACs"):
        assert words in result.stdout
    assert "note: a run of net.py:Net" in result.stdout


def test_an_onnx_file_is_measured_with_and_without_images(here: Path) -> None:
    top1 = read_report(here / "half").compressed.scores[0].value
    found = json.loads(compress("eval", "half/model.onnx", "--data", "digits", "--json").stdout)
    assert found["onnx"]["top1"] == top1 and found["onnx"]["n"] == 359
    assert found["torch"] is None and found["macs"] is None
    assert found["size_bytes"] == (here / "half" / "model.onnx").stat().st_size
    result = compress("eval", "half/model.onnx")  # the file says what shape its images have
    assert result.exit_code == 0
    assert "1x8x8" in result.stdout and "no scores were measured (no data): give --data" in result.stdout


def test_inputs_of_an_onnx_file_may_have_any_name(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 18]> net (float[n, 4] x, int64[n, 2] ids) => (float[n, 4] y) { y = Relu(x) }'
    model = onnx.parser.parse_model(text)
    model.graph.input[0].name = model.graph.node[0].input[0] = "input.1"
    onnx.save(model, tmp_path / "a.onnx")
    result = compress("eval", tmp_path / "a.onnx", "--json")
    assert json.loads(result.stdout)["inputs"] == {"input.1": [4], "ids": [2]}


def test_the_contents_of_an_onnx_file_are_not_trusted(tmp_path: Path) -> None:
    def write(shape: str, name: str = "x") -> Path:
        model = onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : 18]> net (float[n, {shape}] x) => (float y) {{ y = Relu(x) }}'
        )
        model.graph.input[0].name = model.graph.node[0].input[0] = name
        onnx.save(model, tmp_path / "a.onnx")
        return tmp_path / "a.onnx"

    result = compress("eval", write("3, 30000, 30000"))
    assert (result.exit_code, result.stdout) == (2, "") and "3x30000x30000, which would fill the memory" in result.stderr
    result = compress("eval", write("4", "a\x1b[2J\n::error::b"))
    assert result.exit_code == 0 and r"a\x1b[2J\n::error::b 4" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("half/model.onnx", "--data", "digits", "--size", "9"), "takes images of 1x8x8, but was given 1x9x9"),
        (("half/model.onnx", "--input", "3x8x8"), "takes images of 1x8x8, but was given 3x8x8"),
        (("seven.onnx", "--data", "digits"), "has 7 classes, but digits has 10"),
        (("half/report.json",), "is a text file"),
        ((*NET, "--input", "3x8x8"), "does not run on images of 3x8x8"),
        ((*NET, "--device", "cuda:77"), "--device cuda:77 cannot be used here"),
    ],
)
def test_what_cannot_be_measured_is_an_error(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    if arguments[0] == "seven.onnx":
        arguments = (str(tmp_path / "seven.onnx"), *arguments[1:])
        torch.save(make_net(num_classes=7).state_dict(), tmp_path / "seven.pt")
        seven = compress("export", tmp_path / "seven.pt", *NET[1:], "--input", "1x8x8", "--out", arguments[0], "-q")
        assert (seven.exit_code, seven.output) == (0, "")
    result = compress("eval", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and words in result.stderr and result.stderr.count("\n") <= 2


# export ---------------------------------------------------------------------------------------------------------------


def test_a_model_is_exported_and_checked(here: Path, tmp_path: Path) -> None:
    result = compress("export", *NET, "--input", "1x8x8", "--out", tmp_path / "new" / "a.onnx")
    assert result.exit_code == 0, result.output
    onnx.checker.check_model(tmp_path / "new" / "a.onnx", full_check=True)
    assert "a.onnx: net.py:Net, images 1x8x8" in result.stdout
    assert "ONNX Runtime matches PyTorch at batch 1, 2, 3 (largest difference " in result.stdout
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.onnx"]


def test_a_run_has_an_exported_file_already(here: Path, tmp_path: Path) -> None:
    result = compress("export", "half", "--out", tmp_path / "a.onnx")
    assert result.exit_code == 0 and "a copy of half/model.onnx, checked when it was made" in result.stdout
    assert (tmp_path / "a.onnx").read_bytes() == (here / "half" / "model.onnx").read_bytes()


def test_a_file_is_replaced_only_with_force_and_a_wrong_one_never_written(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.onnx"
    out.write_text("old")
    arguments = ("export", *NET, "--input", "1x8x8", "--out", out)
    result = compress(*arguments)
    assert result.exit_code == 2 and "exists: --force replaces it" in result.stderr
    real = compressor.onnx.export.export_onnx

    def wrong(model: torch.nn.Module, shape: tuple[int, int, int], path: Path, *form: object) -> None:
        other = make_net()
        real(other, shape, path, *form)

    with monkeypatch.context() as patched:
        patched.setattr(compressor.onnx.export, "export_onnx", wrong)
        result = compress(*arguments, "--force")
    assert result.exit_code == 4 and "differs from PyTorch by" in result.stderr
    assert out.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


# inspect --------------------------------------------------------------------------------------------------------------


def rows(printed: str) -> set[str]:
    """Lines with one space between words."""
    return {" ".join(line.split()) for line in printed.splitlines()}


def test_prunable_groups_are_listed(here: Path) -> None:
    result = compress("inspect", *NET, "--input", "1x8x8")
    assert result.exit_code == 0, result.output
    assert "net.pt: net.py:Net, images 1x8x8\n" in result.stdout
    for row in (
        "stem.0 1 8 100.0% 98.3% conv2",
        "conv1 1 16 96.9% 92.3%",
        "head 1 it is an output of the model",
        "Smallest reachable: 1.74 k MACs (1.1%), 53 parameters (2.1%)",
    ):
        assert row in rows(result.stdout)
    assert "scattered" in compress("inspect", *NET, "--input", "1x8x8", "--residual", "scatter").stdout


def test_prunable_groups_are_listed_as_json(here: Path) -> None:
    result = compress("inspect", *NET, "--json")
    view = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert view["inputs"] == {"images": [1, 224, 224]} and view["notes"][0].startswith("images are assumed to be 1x224x224")
    stream, inner = view["groups"]
    assert (stream["layers"], stream["channels"], inner["layers"], inner["channels"]) == (["stem.0", "conv2"], 8, ["conv1"], 16)
    assert (stream["read_by"], inner["read_by"], inner["copies"]) == (["conv1", "head"], ["conv2"], 1)
    assert 0 < view["smallest"]["macs"] < 0.1
    assert view["macs"] == (8 * 9 + 16 * 8 * 9 + 8 * 16 * 9) * 224 * 224 + 10 * 8


TALKATIVE = """
import torch
print("imported")
class Net(torch.nn.Sequential):
    def __init__(self):
        print("built")
        super().__init__(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3))
    def forward(self, images):
        print("called")
        return super().forward(images)
"""


@pytest.mark.parametrize(
    "words",
    [("inspect",), ("prune", "--rate", "0.5", "--dry-run"), ("prune", "--rate", "0.5", "--epochs", "0", "--out", "run")],
)
def test_prints_of_the_networks_code_do_not_mix_with_json(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    exec(TALKATIVE, found := {})
    torch.save(found["Net"]().state_dict(), "talkative.pt")
    sys.modules.pop("talkative", None)
    result = compress(words[0], "talkative.pt", "--arch", "talkative:Net", "--input", "1x8x8", *words[1:], "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)
    assert {"imported", "built", "called"} <= set(result.stderr.split())


@pytest.mark.parametrize(("file", "begins"), [("a.md", "```mermaid\nflowchart"), ("a.gv", "digraph")])
def test_the_dependencies_are_drawn(here: Path, tmp_path: Path, file: str, begins: str) -> None:
    result = compress("inspect", *NET, "--input", "1x8x8", "--graph", tmp_path / file)
    assert result.exit_code == 0 and f"The channel dependencies are drawn in {tmp_path / file}" in result.stdout
    text = (tmp_path / file).read_text()
    assert text.startswith(begins) and "stem.0" in text


def test_groups_that_are_alike_share_a_row() -> None:
    result = compress("inspect", "torchvision:resnet18")
    assert result.exit_code == 0, result.output
    assert {"layer1.{0,1}.conv1 2 64 12.7% 0.6%", "conv1 1 64 35.5% 2.0% layer1.{0,1}.conv2"} <= rows(result.stdout)


def test_a_graph_of_an_unknown_format_is_refused(here: Path) -> None:
    result = compress("inspect", *NET, "--graph", "a.png")
    assert (result.exit_code, result.stdout) == (2, "") and ".mmd, .md, .dot, .gv (Mermaid, Graphviz)" in result.stderr


def test_a_model_without_prunable_channels_is_listed_too(here: Path, tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text("from torch import nn\nnet = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n")
    torch.save({"1.weight": torch.ones(10, 64), "1.bias": torch.ones(10)}, tmp_path / "flat.pt")
    arguments = (tmp_path / "flat.pt", "--arch", f"{tmp_path / 'flat.py'}:net", "--input", "1x8x8")
    assert "Smallest reachable: 640 MACs (100.0%)" in compress("inspect", *arguments).stdout
    result = compress("prune", *arguments, "--rate", "0.5", "--out", tmp_path / "out")
    assert result.exit_code == 3 and "No channel of this model can be pruned" in result.stderr


# methods --------------------------------------------------------------------------------------------------------------


def test_methods_are_listed_and_described() -> None:
    listed = compress("methods")
    assert listed.exit_code == 0 and "magnitude" in listed.stdout and "sfp" in listed.stdout
    told = compress("methods", "sfp")
    assert told.exit_code == 0
    for words in ("compress prune MODEL --method sfp", "arXiv 1808.06866", "mask_norms True also", "Needs: images and epochs"):
        assert words in " ".join(told.stdout.split())
    assert "Needs: nothing" in compress("methods", "magnitude").stdout
    wrong = compress("methods", "spf")
    assert wrong.exit_code == 2 and "did you mean 'sfp'?" in wrong.stderr


@pytest.mark.parametrize("width", [80, 120])
def test_methods_fit_the_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = compress("methods").stdout.splitlines()
    first = [" ".join(line.split()[:3]) for line in lines if re.match(r"\w+ +\d{4} ", line)]
    assert first == [f"{entry.name} {entry.year} {entry.kind}" for entry in catalogue().values()]
    told = [line for name in catalogue() for line in compress("methods", name).stdout.splitlines()]
    assert max(map(len, lines + told)) <= width


# compress itself ------------------------------------------------------------------------------------------------------


def test_the_version_is_printed() -> None:
    result = compress("--version")
    assert (result.exit_code, result.stdout) == (0, f"compress {compressor.__version__}\n")


def test_every_command_explains_itself() -> None:
    top = compress("-h").stdout
    for command in ("demo", "inspect", "sensitivity", "prune", "eval", "export", "methods"):
        assert command in top
        assert compress(command, "--help").exit_code == 0


def test_help_is_there_at_once_and_without_torch() -> None:
    code = "import runpy, sys; sys.argv = ['compress', '--help']\ntry: runpy.run_module('compressor', run_name='__main__')\n"
    code += "finally: print(sorted({'torch', 'numpy', 'onnx'} & sys.modules.keys()), file=sys.stderr)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "Usage: " in done.stdout and "Exit status: 0 done" in " ".join(done.stdout.split())
    assert after.ru_utime - before.ru_utime < 1.5  # seconds of computing: a busy machine takes longer by the clock
