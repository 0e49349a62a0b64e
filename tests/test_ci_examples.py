"""examples/ci: its YAML files are run by an emulation of GitHub Actions and GitLab CI."""

import re
import runpy
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from xml.etree import ElementTree

import pytest
from services import Build, GitHub, gitlab, read

EXAMPLES = Path(__file__).parents[1] / "examples" / "ci"
FILES = sorted(EXAMPLES.glob("*.yml"))
AT = Path("examples/ci")  # in a checkout
OUT = AT / "runs" / "digits"
MET, MISSED = "size<=120KB", "size<=50KB"
OWN = 'do = "check"', f'do = "check"\nbudget = ["{MISSED}"]'


def checkout(folder: Path, model: Path | None = None, change: Sequence[str] = ()) -> Path:
    """A checkout of a repository with examples/ci and optionally a model, with a change in compress.toml."""
    sources = [path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".toml", ".yml")]
    (folder / AT).mkdir(parents=True)
    for path in [*sources, *([model] if model else [])]:
        shutil.copy(path, folder / AT)
    settings = folder / AT / "compress.toml"
    text = settings.read_text()
    for old, new in [("latency<=90%", "latency<=1s"), *([change] if change else [])]:  # tests must not depend on timing
        assert old in text
        text = text.replace(old, new)
    settings.write_text(text)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cases(junit: Path) -> dict[str, bool]:
    """The test cases of a JUnit file, and whether each has failed."""
    found = ElementTree.parse(junit).getroot().iter("testcase")
    return {case.attrib["name"]: case.find("failure") is not None for case in found}


def metrics(file: Path) -> dict[str, float]:
    """The samples of an OpenMetrics file."""
    *lines, end = file.read_text().splitlines()
    assert end == "# EOF"
    return {name: float(value) for line in lines if not line.startswith("#") for name, value in [line.rsplit(" ", 1)]}


@pytest.fixture(scope="module")
def github(tmp_path_factory: pytest.TempPathFactory) -> GitHub:
    return GitHub(tmp_path_factory.mktemp("github") / "store")


@pytest.fixture(scope="module")
def first(github: GitHub, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A push to the main branch, without a cache. Read-only."""
    root = checkout(tmp_path_factory.mktemp("first") / "repository")
    with chdir(root / AT), pytest.MonkeyPatch.context() as patch:  # in this process, to avoid importing torch again
        patch.setattr(sys, "path", [".", *sys.path])
        patch.delitem(sys.modules, "net", raising=False)  # of another test
        runpy.run_path("train.py", run_name="__main__")
        sys.modules.pop("net")
    return github.run(read(EXAMPLES / "github.yml"), root, "push", "a1")


def pull(github: GitHub, first: Build, root: Path, *change: str) -> Build:
    """A pull request into the main branch that replaces a text in compress.toml."""
    checkout(root, first.root / AT / "model.pt", change)
    return github.run(read(EXAMPLES / "github.yml"), root, "pull_request", "b2", base="a1")


# On GitHub ------------------------------------------------------------------------------------------------------------


def test_a_build_whose_budgets_are_met_passes_and_tells(first: Build) -> None:
    assert first.status == 0, first.log
    outputs = first.outputs["shrink"]
    assert outputs["passed"] == "true" and outputs["verdict"] == "PASS: 4 of 4 budgets met"
    assert int(outputs["size_bytes"]) == (first.root / OUT / "model.onnx").stat().st_size
    assert all(outputs.values())
    assert first.summary.startswith("### digits: PASS: 4 of 4 budgets met") and first.summary.count("### ") == 1
    assert f"PASS: 4 of 4 budgets met, {outputs['size_bytes']} bytes" in first.log
    assert cases(first.root / AT / "junit.xml") == dict.fromkeys(["drop<=2", "macs<=51%", "size<=120KB", "latency<=1s"], False)
    told = metrics(first.root / AT / "metrics.txt")
    assert told['compress_size_bytes{network="compressed"}'] == int(outputs["size_bytes"])
    names = {"model.onnx", "model.safetensors", "plan.json", "report.html", "report.json", "report.md"}
    assert set(first.artifact) == {str(OUT / name) for name in names} | {
        str(AT / name) for name in ("junit.xml", "metrics.txt")
    }


def test_a_build_of_an_unchanged_model_makes_nothing(github: GitHub, first: Build, tmp_path: Path) -> None:
    kept = len(github.caches)
    build = pull(github, first, tmp_path / "elsewhere")
    assert build.status == 0, build.log
    assert "1-prune: up to date" in build.log
    assert contents(build.root / OUT) == contents(first.root / OUT)
    assert build.outputs["shrink"]["verdict"] == "PASS: 9 of 9 budgets met"  # including those against the main branch
    assert cases(build.root / AT / "junit.xml")["macs<=baseline+2%"] is False
    assert len(github.caches) == kept


def test_a_build_that_misses_a_budget_fails_and_tells(github: GitHub, first: Build, tmp_path: Path) -> None:
    kept = len(github.caches)
    build = pull(github, first, tmp_path / "elsewhere", MET, MISSED)
    assert build.status == 1
    outputs = build.outputs["shrink"]
    assert outputs["passed"] == "false" and outputs["verdict"] == "FAIL: 8 of 9 budgets met, 1 missed"
    (annotation,) = (line for line in build.log.splitlines() if line.startswith("::"))
    assert annotation.startswith("::error title=Budget size<=50KB::size ")
    assert build.summary.startswith("### digits: FAIL: 8 of 9 budgets met, 1 missed") and build.summary.count("### ") == 1
    assert [name for name, failed in cases(build.root / AT / "junit.xml").items() if failed] == ["size<=50KB"]
    assert metrics(build.root / AT / "metrics.txt")['compress_budget_met{budget="size<=50KB",level="error"}'] == 0
    assert "1-prune: up to date" in build.log and len(github.caches) == kept + 1
    assert str(OUT / "report.html") in build.artifact


def test_a_step_that_fails_is_no_missed_budget(github: GitHub, first: Build, tmp_path: Path) -> None:
    kept = len(github.caches)
    build = pull(github, first, tmp_path / "elsewhere", "rate = 0.5", "rat = 0.5")
    assert build.status == 2 and "did you mean 'rate'?" in build.log
    assert (build.root / OUT / "report.json").exists() and build.outputs["shrink"]["passed"] == ""  # it is an old one
    assert len(github.caches) == kept


def test_budgets_of_the_steps_own_count(github: GitHub, first: Build, tmp_path: Path) -> None:
    build = pull(github, first, tmp_path / "elsewhere", *OWN)
    assert build.status == 1 and "missed  size" in build.log and "PASS: 9 of 9 budgets met" in build.log
    assert merge(first, tmp_path / "gitlab", "main", *OWN).status == 1


# On GitLab ------------------------------------------------------------------------------------------------------------


@contextmanager
def api(folder: Path) -> Iterator[str]:
    """Serve the files under `folder`; yields the address."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def merge(first: Build, folder: Path, target: str, *change: str) -> Build:
    """A merge request into the branch `target`, with cached results. Only main has a report."""
    root = checkout(folder / "repository", first.root / AT / "model.pt", change)
    shutil.copytree(first.root / OUT, root / OUT, copy_function=shutil.copy)
    reports = folder / "projects" / "7" / "jobs" / "artifacts" / "main" / "raw" / OUT
    reports.mkdir(parents=True)
    shutil.copy(first.root / OUT / "report.json", reports)
    with api(folder) as address:
        return gitlab(
            read(EXAMPLES / "gitlab.yml")[".compress"],
            root,
            CI_API_V4_URL=address,
            CI_PROJECT_ID=7,
            CI_JOB_NAME="digits",
            CI_JOB_TOKEN="token",
            CI_MERGE_REQUEST_TARGET_BRANCH_NAME=target,
            COMPRESS_DIRECTORY=AT,
            COMPRESS_OUT="runs/digits",
        )


def test_gitlab_passes_a_merge_request_that_is_no_worse_than_its_target(first: Build, tmp_path: Path) -> None:
    build = merge(first, tmp_path, "main")
    assert build.status == 0, build.log
    assert "1-prune: up to date" in build.log and "PASS: 9 of 9 budgets met" in build.log
    assert contents(build.root / OUT) == contents(first.root / OUT)
    assert not any(cases(build.root / "junit.xml").values())
    assert metrics(build.root / "metrics.txt")['compress_budget_met{budget="macs<=baseline+2%",level="error"}'] == 1


def test_gitlab_fails_one_that_misses_a_budget_and_goes_on_without_a_report_of_the_target(first: Build, tmp_path: Path) -> None:
    build = merge(first, tmp_path, "other", MET, MISSED)
    assert build.status == 1
    assert "There is nothing to compare with." in build.log and "FAIL: 3 of 4 budgets met, 1 missed" in build.log
    assert [name for name, failed in cases(build.root / "junit.xml").items() if failed] == ["size<=50KB"]


# The files ------------------------------------------------------------------------------------------------------------


def shell(node: Any) -> Iterator[str]:
    """All texts that a service passes to a shell."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("run", "script", "before_script", "after_script"):
                yield from [value] if isinstance(value, str) else value if isinstance(value, list) else ()
            yield from shell(value)
    elif isinstance(node, list):
        for value in node:
            yield from shell(value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_expression_is_written_into_shell(file: Path) -> None:
    texts = list(shell(read(file)))
    assert texts and all(isinstance(text, str) and "${{" not in text for text in texts)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_is_named_is_there(file: Path) -> None:
    text = file.read_text()
    assert not re.search(r"https?://", text)
    assert all(re.fullmatch(r"\./.+|actions/[\w/-]+@v\d+", name) for name in re.findall(r"uses: (\S+)", text))
    known = read(file).get("inputs", {})
    assert set(re.findall(r"\binputs\.([\w-]+)", text)) == known.keys()
