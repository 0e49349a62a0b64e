"""plan.json: the compressed network is rebuilt bit for bit, in another process and without this package; no file runs code."""

import copy
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import write_project
from torch import nn

import compressor
from compressor.channels import Cut, Residual, analyse, remove
from compressor.checkpoint import build
from compressor.checkpoint.load import load_run
from compressor.checkpoint.plan import Plan, from_json, save_model, to_json
from compressor.errors import ArchitectureError, CheckpointError, UsageError
from compressor.methods.prune.filters import norms
from compressor.methods.widths import choose
from compressor.network.inputs import Input, Inputs
from compressor.network.replacements import Chains, describe, make, replaced
from compressor.training.goal import parse_rate

NETS = '''
import os

import torch
from torch import nn


class Tied(nn.Module):
    """Both branches have one convolution, and the two classifiers one weight."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 16, 3)
        self.right = self.left
        self.head1, self.head2 = nn.Linear(16, 4, bias=False), nn.Linear(16, 4)
        self.head2.weight = self.head1.weight

    def forward(self, x):
        x = self.stem(x).relu()
        left, right = self.left(x).relu().mean((2, 3)), self.right(x.flip(3)).relu().mean((2, 3))
        return self.head1(left) + self.head2(right)


class Buffered(nn.Module):
    """A buffer with one number a channel that no checkpoint holds, and one that every checkpoint holds."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.register_buffer("scale", torch.arange(1.0, 9.0).reshape(8, 1, 1), persistent=False)
        self.register_buffer("shift", torch.arange(8.0).reshape(8, 1, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head((self.conv(x) * self.scale + self.shift).relu().mean((2, 3)))


ready = Buffered()
system = os.system
'''

RUNS: dict[str, tuple[str, dict[str, object], tuple[int, int, int], Residual]] = {
    "coupled": ("net.py:Net", {"num_classes": 7}, (1, 8, 8), "coupled"),
    "scatter": ("net.py:Net", {}, (1, 8, 8), "scatter"),
    "torchvision": ("torchvision:squeezenet1_1", {"num_classes": 5}, (3, 32, 32), "coupled"),
    "tied": ("nets.py:Tied", {}, (1, 8, 8), "coupled"),
    "buffered": ("nets:Buffered", {}, (1, 8, 8), "coupled"),
    "ready": ("nets.py:ready", {}, (1, 8, 8), "coupled"),
}


def cut(model: torch.nn.Module, shape: tuple[int, int, int], residual: Residual = "coupled") -> Any:
    """`model` with half of its MACs."""
    channels = analyse(model, shape, residual)
    goal = parse_rate(0.5)
    return remove(model, channels, lambda left: choose(left, norms(model, left), goal, round_to=1), shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a compressed network of each kind in `runs/`, each with its outputs. Read only."""
    folder = tmp_path_factory.mktemp("plans")
    write_project(folder)
    (folder / "nets.py").write_text(NETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        for name, (arch, args, shape, residual) in RUNS.items():
            torch.manual_seed(0)
            made = cut(build(arch, args).eval(), shape, residual)
            run = folder / "runs" / name
            run.mkdir(parents=True)
            save_model(run, made.model, Plan(arch, args, shape).then(made.cut))
            images = torch.randn(2, *shape)
            with torch.no_grad():
                torch.save({"images": images, "answers": made.model.eval()(images)}, run / "expected.pt")
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`folder` as working directory."""
    monkeypatch.chdir(folder)
    return folder


# Loading --------------------------------------------------------------------------------------------------------------


def assert_answers(network: torch.nn.Module, run: Path) -> None:
    """Its outputs equal those of the saved network bit for bit."""
    expected = torch.load(run / "expected.pt")
    with torch.no_grad():
        assert torch.equal(network(expected["images"]), expected["answers"])


@pytest.mark.parametrize("name", RUNS)
def test_a_small_network_is_rebuilt_bit_for_bit(here: Path, name: str) -> None:
    small = compressor.load(Path("runs", name))
    assert_answers(small, Path("runs", name))
    assert not small.training


def test_what_has_two_names_is_written_once_and_stays_one(here: Path) -> None:
    small: Any = compressor.load("runs/tied")
    assert small.left is small.right and small.head1.weight is small.head2.weight
    assert [name for name in load_file("runs/tied/model.safetensors") if "right" in name or "head2.weight" in name] == []
    assert small.left.weight.shape[0] < 16


def test_a_buffer_that_is_not_saved_is_cut_too(here: Path) -> None:
    small: Any = compressor.load("runs/buffered")
    kept = np.flatnonzero([value in small.shift.flatten() for value in torch.arange(8.0)])
    assert small.scale.flatten().tolist() == [place + 1 for place in kept] and len(kept) < 8


BLOCKS = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "loading.md").read_text(encoding="utf-8"), re.S
)

ALONE = """
import json, sys, torch

class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "compressor":
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
page, with_compressor = json.loads(sys.argv[1])
exec(page)
import net, nets, torchvision

torch.set_num_threads(1)  # as in the process that wrote what is expected

def check(network, name):
    expected = torch.load(f"runs/{name}/expected.pt")
    with torch.no_grad():
        assert torch.equal(network(expected["images"]), expected["answers"]), name

def originals():
    yield "coupled", net.Net(num_classes=7)
    yield "scatter", net.Net()
    yield "tied", nets.Tied()
    yield "buffered", nets.Buffered()
    yield "torchvision", torchvision.models.squeezenet1_1(num_classes=5)

for name, network in originals():
    check(load(f"runs/{name}", network), name)
try:
    load("runs/tied", net.Net())
except KeyError:
    pass
else:
    raise SystemExit("loaded into another network")

sys.meta_path.pop(0)
for name, _ in originals():
    exec(with_compressor.replace("runs/half", f"runs/{name}"))
    check(network, name)
"""


def test_the_code_of_the_page_loads_in_a_new_process_without_this_package_and_with_it(here: Path) -> None:
    with_compressor, named, alone, *_ = BLOCKS
    assert named.startswith('network = compressor.load("runs/half", arch=')
    done = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps([alone, with_compressor])], capture_output=True, text=True, timeout=200
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_cut_of_a_cut_is_one_plan(here: Path) -> None:
    first = load_run(Path("runs/scatter"), None)
    assert first.plan is not None
    again = cut(first.model, (1, 8, 8))
    plan = from_json(to_json(first.plan.then(again.cut)), "plan.json")
    save_model(Path("runs"), again.model, plan)
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(load_run(Path("runs"), None).model(images), again.model.eval()(images))
    assert len(plan.steps) == 2 and plan.then(Cut()) == plan


def test_a_plan_of_the_first_format_is_read(here: Path, tmp_path: Path) -> None:
    def first(plan: dict[str, Any]) -> None:
        plan.update(version=1, **plan.pop("steps")[0])

    run = rewrite(here / "runs" / "scatter", tmp_path / "run", first)
    assert_answers(compressor.load(run), here / "runs" / "scatter")


def test_cutting_and_factoring_follow_each_other_in_any_order(here: Path, tmp_path: Path) -> None:
    first = load_run(Path("runs/scatter"), None)
    assert first.plan is not None
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Conv2d(8, 6, (3, 1), padding=(1, 0), bias=False), nn.Conv2d(6, 16, (1, 3), padding=(0, 1)))
    model = build("net.py:Net", {}).eval()
    assert (model.conv1.in_channels, model.conv1.out_channels) == (8, 16)
    step = Chains({"conv1": describe(chain)})
    factored = replaced(model, {"conv1": chain})
    small = cut(factored, (1, 8, 8))
    plan = from_json(to_json(Plan("net.py:Net", {}, (1, 8, 8)).then(step).then(small.cut)), "plan.json")
    again = replaced(copy.deepcopy(small.model), {"head": make(describe(nn.Linear(small.model.head.in_features, 10)))})
    plan = plan.then(Chains({"head": describe(again.head)}))
    save_model(tmp_path, again, plan)
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(load_run(tmp_path, None).model(images), again.eval()(images))


CHAINS = {
    "no type": [{}],
    "an unknown type": [{"type": "Module"}],
    "something to import": [{"type": "os.system", "command": "touch hacked"}],
    "an unknown argument": [{"type": "Linear", "in_features": 8, "out_features": 8, "device": "cpu", "more": 1}],
    "a negative size": [{"type": "Linear", "in_features": 8, "out_features": -8}],
    "a number for a list": [{"type": "Take", "dim": 1, "index": 3}],
    "a huge plane": [{"type": "Patches", "size": [9, 9], "kernel": [2**30, 2**30], "stride": [1, 1], "padding": [0, 0],
                      "dilation": [1, 1], "places": [0]}],
    "no list of parts": 3,
    "a stride of zero": [{"type": "Patches", "size": [9, 9], "kernel": [1, 1], "stride": [0, 0], "padding": [0, 0],
                          "dilation": [1, 1], "places": [0]}],
    "no channels at all": [{"type": "Linear", "in_features": 8, "out_features": 0}],
    "many planes that are not quite huge": 9 * [{"type": "Patches", "size": [9, 9], "kernel": [8000, 8000], "stride": [1, 1],
                                                 "padding": [9000, 9000], "dilation": [1, 1], "places": [0]}],
    "chains in chains in chains": [{"type": "Apart", "chains": [[{"type": "Apart", "chains": 3}]]}],
}  # fmt: skip


@pytest.mark.parametrize("kind", CHAINS)
def test_a_chain_that_is_wrong_is_told(here: Path, tmp_path: Path, kind: str) -> None:
    run = rewrite(here / "runs" / "coupled", tmp_path / "run", put("steps", value=[{"parts": {"conv1": CHAINS[kind]}}]))
    with pytest.raises(CheckpointError, match="is not a valid plan"):
        compressor.load(run)


def test_a_chain_of_a_size_that_is_not_true_takes_no_memory(here: Path, tmp_path: Path) -> None:
    huge = [{"type": "Linear", "in_features": 2**30, "out_features": 2**30, "bias": False}]
    run = rewrite(here / "runs" / "coupled", tmp_path / "run", lambda plan: plan["steps"].append({"parts": {"conv1": huge}}))
    with pytest.raises(CheckpointError, match=r"conv1.weight has the shape"):
        compressor.load(run)


# Code that must not run -----------------------------------------------------------------------------------------------


def rewrite(source: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a run with another plan."""
    target.mkdir(parents=True)
    plan = json.loads((source / "plan.json").read_text(encoding="utf-8"))
    change(plan)
    (target / "plan.json").write_text(json.dumps(plan))
    (target / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    return target


HOSTILE: dict[str, tuple[str, dict[str, object]]] = {
    "a function of the standard library": ("os:system", {"command": "touch hacked"}),
    "one that a file here imports": ("nets.py:os.system", {"command": "touch hacked"}),
    "one that a file here calls by another name": ("nets.py:system", {"command": "touch hacked"}),
    "an installed package": ("torch.hub:load", {"repo_or_dir": "somebody/something", "model": "x"}),
    "a file elsewhere": ("ELSEWHERE/evil.py:Net", {}),
    "a file elsewhere, by a detour": ("../ELSEWHERE/evil.py:Net", {}),
    "a file that came with the run": ("runs/hostile/evil.py:Net", {}),
    "a module that came with the run": ("runs.hostile.evil:Net", {}),
    "a file that timm would open": ("timm:resnet18", {"checkpoint_path": "evil.pt"}),
    "nothing at all": ("", {}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_run_does_not_choose_what_code_is_executed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    arch, args = HOSTILE[kind]
    elsewhere = tmp_path / "elsewhere"
    work = tmp_path / "work"
    run = rewrite(
        folder / "runs" / "coupled",
        work / "runs" / "hostile",
        lambda plan: plan.update(
            arch=arch.replace("../ELSEWHERE", "../elsewhere").replace("ELSEWHERE", str(elsewhere)), arch_args=args
        ),
    )
    elsewhere.mkdir()
    for place in (elsewhere, run):
        (place / "evil.py").write_text("from pathlib import Path\nPath('hacked').touch()\nclass Net: ...\n")
    (work / "nets.py").write_text(NETS)
    monkeypatch.chdir(work)
    with pytest.raises(ArchitectureError, match="other code is not executed unless you name it") as caught:
        compressor.load(run)
    assert "--arch" in str(caught.value) and str(caught.value).count("\n") == 1
    assert not (work / "hacked").exists()


def test_code_elsewhere_is_called_when_it_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArchitectureError, match=re.escape(f"not a class or function in a file below {tmp_path}")):
        compressor.load(folder / "runs" / "scatter")
    named = compressor.load(folder / "runs" / "scatter", arch=f"{folder}/net.py:Net")
    assert_answers(named, folder / "runs" / "scatter")


def test_the_code_of_a_pickled_module_has_to_be_named(here: Path, tmp_path: Path) -> None:
    run = rewrite(here / "runs" / "scatter", tmp_path / "run", lambda plan: plan.update(arch="pickle:net.pt"))
    with pytest.raises(ArchitectureError, match=r"made from pickle:net.pt, whose code is in that file\.\nGive the code"):
        compressor.load(run)
    assert compressor.load(run, arch="net.py:Net")


def test_the_demos_own_network_needs_no_name(tmp_path: Path) -> None:
    made = cut(build("compressor.demo:DigitsNet"), (1, 8, 8))
    save_model(tmp_path, made.model, Plan("compressor.demo:DigitsNet", {}, (1, 8, 8)).then(made.cut))
    compressor.load(tmp_path)


@pytest.mark.parametrize(
    "inputs",
    [
        Inputs.of((3, 8, 8)),
        Inputs.of((3, 4, 8, 8)),
        Inputs((Input((3, 8, 8), "pixel_values"), Input((16,), "input_ids", "int64"))),
        None,
    ],
)
def test_what_a_network_is_called_with_is_kept(inputs: Inputs | None) -> None:
    assert from_json(to_json(Plan("net.py:Net", inputs=inputs)), "here").inputs == inputs


def test_images_alone_are_written_as_three_numbers() -> None:
    assert json.loads(to_json(Plan("net.py:Net", inputs=(3, 8, 8))))["input_shape"] == [3, 8, 8]


# Invalid plans --------------------------------------------------------------------------------------------------------


def put(*path: str, value: object) -> Callable[[dict[str, Any]], object]:
    """Set the value under a path of keys, of the plan or of its first step."""

    def change(plan: dict[str, Any]) -> None:
        plan = plan if path[0] in plan else plan["steps"][0]
        for key in path[:-1]:
            plan = plan[key]
        plan[path[-1]] = value

    return change


IMAGES = {"size": [8, 8], "crop": 1.0, "mode": "L", "mean": [0.3], "std": [0.4], "classes": ["a", "b"]}
WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an attribute that is not a count": (put("counts", "conv1", "forward", value=1), "conv1.forward is None: it cannot be set"),
    "a count that is text": (put("counts", "conv1", "in_channels", value="8"), "'8' is not a count"),
    "a count that is true": (put("counts", "conv1", "in_channels", value=True), "True is not a count"),
    "a count that is not whole": (put("counts", "conv1", "in_channels", value=8.5), "8.5 is not a count"),
    "a huge count": (put("counts", "conv1", "in_channels", value=2**70), "is not a count"),
    "a count below zero": (put("counts", "conv1", "in_channels", value=-1), "-1 is not a count"),
    "a count of another network": (put("counts", "conv1", "groups", value=2), "does not fit net.py:Net"),
    "a module that is not there": (put("counts", "conv9", value={"in_channels": 8}), "does not fit net.py:Net"),
    "an index twice": (put("indices", "i0", value=[1, 1]), "sorted and unique"),
    "no index": (put("indices", "i0", value=[]), "sorted and unique"),
    "an index out of range": (put("indices", "i0", value=[0, 2**30]), "does not fit net.py:Net"),
    "a list that is not there": (put("kept", "conv1.weight", value={"0": "i99"}), "i99"),
    "a dimension that is none": (put("kept", "conv1.weight", value={"x": "i0"}), "invalid literal"),
    "a dimension that is not there": (put("kept", "conv1.weight", value={"9": "i0"}), "does not fit net.py:Net"),
    "a tensor that is not there": (put("kept", "conv9.weight", value={"0": "i0"}), "does not fit net.py:Net"),
    "a scatter outside its width": (put("scatter", "bn2", value={"kept": [0, 9], "width": 8, "dim": 1}), "does not fit"),
    "a huge scatter": (put("scatter", "bn2", value={"kept": [0], "width": 2**31 - 1, "dim": 1}), "does not fit net.py:Net"),
    "a scatter along the batch": (put("scatter", "bn2", value={"kept": [0], "width": 8, "dim": 0}), "does not fit"),
    "no scatter": (put("scatter", value={}), "does not fit net.py:Net"),
    "missing keys": (lambda plan: plan.pop("steps"), "it has no `steps`"),
    "no version": (lambda plan: plan.pop("version"), "it has no `version`"),
    "another version": (put("version", value=3), "has version 3, but this version of compress reads versions 1 and 2: update"),
    "another shape": (put("kept", value={}), "with this plan"),
    "a list for a table": (put("kept", value=[]), "is not a valid plan"),
    "two sizes": (put("input_shape", value=[8, 8]), "is not a valid plan"),
    "no input": (put("input_shape", value=[]), "is not a valid plan"),
    "an input without a shape": (put("input_shape", value=[{"name": "x", "dtype": None}]), "is not a valid plan"),
    "an input that would fill the memory": (put("input_shape", value=[3, 2**16, 2**16]), "inputs have more than 67,108,864"),
    "an invalid name of code": (put("arch", value="a\x1b[2J\n.py:Net"), "is not a valid architecture name"),
    "a stride of zero": (put("counts", "conv1", "stride", value=[0, 0]), "does not fit net.py:Net"),
    "an unknown image mode": (
        lambda plan: plan.update(preprocessing={**IMAGES, "mode": "RGBA"}),
        "the preprocessing is not valid",
    ),
    "a standard deviation of NaN": (
        lambda plan: plan.update(preprocessing={**IMAGES, "std": [float("nan")]}),
        "a value is not finite",
    ),
    "a tile of no pixels": (
        lambda plan: plan.update(preprocessing={**IMAGES, "tile": [8, 0]}),
        "a tile has no pixels",
    ),
    "an unknown fit": (
        lambda plan: plan.update(preprocessing={**IMAGES, "fit": "own"}),
        "'own' is not one of cover, stretch, letterbox, whole",
    ),
    "missing preprocessing entries": (lambda plan: plan.update(preprocessing={"size": [8, 8]}), "is not a valid plan"),
    "an input of a strange type": (
        put("input_shape", value=[{"name": "x", "shape": [3], "dtype": "load"}]),
        "is not a valid plan",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_plan_that_is_wrong_is_told(here: Path, tmp_path: Path, kind: str) -> None:
    change, words = WRONG[kind]
    run = rewrite(here / "runs" / "scatter", tmp_path / "run", change)
    with pytest.raises(CheckpointError) as caught:
        compressor.load(run)
    assert words in str(caught.value) and str(run) in str(caught.value)
    assert str(caught.value).count("\n") <= 1 and len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["", "[]", "{", '{"arch": "x"}', "[" * 100_000, '{"version": 2' + "9" * 5000 + "}"])
def test_what_is_no_plan_is_told(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"here/plan\.json is not a valid plan: it "):
        from_json(text, "here/plan.json")


def test_weights_that_are_wrong_are_told(here: Path, tmp_path: Path) -> None:
    run = rewrite(here / "runs" / "coupled", tmp_path / "run", lambda plan: None)
    weights = load_file(run / "model.safetensors")
    for change, words in (
        ({**weights, "more": torch.zeros(1)}, r"0 missing \(none\), 1 unexpected \(more\)"),
        ({name: value for name, value in weights.items() if name != "conv1.weight"}, r"1 missing \(conv1.weight\)"),
        ({**weights, "conv1.weight": weights["conv1.weight"][:1].clone()}, r"conv1.weight has the shape \[1, "),
        ({**weights, "conv1.weight": weights["conv1.weight"].long()}, r"conv1.weight is int64"),
    ):
        save_file(change, run / "model.safetensors")
        with pytest.raises(CheckpointError, match=words):
            compressor.load(run)
    (run / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        compressor.load(run)
    (run / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        compressor.load(run)


@pytest.mark.parametrize("width", [20_000, 2**31])
def test_a_network_that_no_run_could_have_written_is_not_built(here: Path, tmp_path: Path, width: int) -> None:
    run = rewrite(here / "runs" / "coupled", tmp_path / "run", put("arch_args", value={"width": width}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArchitectureError, match=r"its weights take more than 2,147,483,648 bytes"):
        compressor.load(run)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes


@pytest.mark.parametrize("where", ["\0", "x" * 5000, "a/" * 3000])
def test_a_name_that_no_file_can_have_is_no_code(here: Path, tmp_path: Path, where: str) -> None:
    run = rewrite(here / "runs" / "coupled", tmp_path / "run", put("arch", value=f"{where}.py:Net"))
    with pytest.raises(UsageError, match=r"is not a valid architecture name|not a class or function in a file below"):
        compressor.load(run)


def test_a_plan_that_is_a_pipe_or_endless_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "plan.json").write_bytes(b" " * 17_000_000)
    with pytest.raises(CheckpointError, match="File too large"):
        compressor.load(tmp_path)
    (tmp_path / "plan.json").unlink()
    os.mkfifo(tmp_path / "plan.json")
    with pytest.raises(UsageError, match=r"is a directory without plan\.json"):
        compressor.load(tmp_path)


def test_code_of_another_network_is_told(here: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the plan does not fit nets.py:Tied"):
        compressor.load("runs/scatter", arch="nets.py:Tied")
