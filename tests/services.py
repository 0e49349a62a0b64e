"""A minimal emulation of GitHub Actions and GitLab CI for examples/ci: reads jobs from YAML and runs their shell commands.

Caches and artefacts are directories. `pip` does nothing, because everything that it would install is there.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Values = dict[str, str]


def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def environment(bin_: Path, **variables: object) -> Values:
    """The environment variables of a job, without those of a CI service that may be running the tests."""
    bin_.mkdir(exist_ok=True)
    (bin_ / "pip").write_text("#!/bin/sh\n")
    (bin_ / "pip").chmod(0o755)
    path = os.pathsep.join([str(bin_), str(Path(sys.executable).parent), os.environ["PATH"]])
    rest = {name: value for name, value in os.environ.items() if not name.startswith(("GITHUB_", "CI"))}
    return rest | {"PATH": path, "CI": "true"} | {name: str(value) for name, value in variables.items()}


def matches(root: Path, patterns: str) -> list[Path]:
    """Files under `root` that match a line of `patterns`."""
    lines = [os.path.normpath(line) for line in patterns.split()]
    return sorted({path for line in lines for path in root.glob(line) if path.is_file()})


@dataclass
class Build:
    """The result of a job."""

    root: Path  # its checkout
    status: int = 0
    log: str = ""
    summary: str = ""  # GitHub's, in Markdown
    outputs: dict[str, Values] = field(default_factory=dict)  # of each step that has an id
    artifact: list[str] = field(default_factory=list)  # the files that were uploaded


class GitHub:
    """Runs the jobs of a workflow, one checkout after another, and keeps their caches in `store`."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.caches: dict[tuple[str, str], Path] = {}  # by path and key, the oldest first
        store.mkdir()

    def run(self, workflow: Mapping[str, Any], root: Path, event: str, sha: str, base: str = "") -> Build:
        """The only job of `workflow`, in the checkout `root`."""
        (job,) = workflow["jobs"].values()
        build = Build(root)
        known = {
            "github.event_name": event,
            "github.sha": sha,
            "github.event.pull_request.base.sha": base,
            "runner.os": "Linux",
        }
        self._steps(job["steps"], build, known, workflow["defaults"]["run"])
        return build

    def _steps(self, steps: list[dict[str, Any]], build: Build, known: Values, defaults: Mapping[str, str]) -> None:
        for step in steps:
            if not self._is_due(step.get("if"), build, known):
                continue
            given = {name: self._filled(value, build, known) for name, value in step.get("with", {}).items()}
            outputs: Values = {}
            if "run" in step:
                outputs = self._shell(step, build, known, step.get("working-directory", defaults.get("working-directory", ".")))
            elif step["uses"].startswith("./"):
                outputs = self._action(build.root / step["uses"], given, build, known)
            elif step["uses"].startswith("actions/cache/"):
                outputs = self._cache(step["uses"], build, **{name.replace("-", "_"): value for name, value in given.items()})
            elif step["uses"].startswith("actions/upload-artifact@"):
                build.artifact = [str(path.relative_to(build.root)) for path in matches(build.root, given["path"])]
            known |= {f"steps.{step['id']}.outputs.{name}": value for name, value in outputs.items() if "id" in step}
            if "id" in step:
                build.outputs[step["id"]] = outputs

    def _action(self, folder: Path, given: Values, build: Build, known: Values) -> Values:
        action = read(folder / "action.yml")
        assert given.keys() <= action["inputs"].keys()
        inputs = {f"inputs.{name}": given.get(name, value["default"]) for name, value in action["inputs"].items()}
        inner = {name: value for name, value in known.items() if not name.startswith("steps.")} | inputs
        self._steps(action["runs"]["steps"], build, inner, {})
        return {name: self._filled(output["value"], build, inner) for name, output in action["outputs"].items()}

    def _shell(self, step: Mapping[str, Any], build: Build, known: Values, folder: str) -> Values:
        files = {name: self.store / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for file in files.values():
            file.write_text("")
        given = {name: self._filled(value, build, known) for name, value in step.get("env", {}).items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=build.root / self._filled(folder, build, known),
            env=environment(self.store / "bin", GITHUB_ACTIONS="true", RUNNER_TEMP=self.store, **files) | given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        build.log += done.stdout
        build.status = build.status or done.returncode
        build.summary += files["GITHUB_STEP_SUMMARY"].read_text(encoding="utf-8")
        return dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text(encoding="utf-8").splitlines())

    def _cache(self, uses: str, build: Build, path: str, key: str, restore_keys: str = "") -> Values:
        place = os.path.normpath(path)
        if "/save@" in uses:
            assert (place, key) not in self.caches, "a cache is never replaced"
            self.caches[place, key] = self.store / f"cache{len(self.caches)}"
            shutil.copytree(build.root / place, self.caches[place, key])
            return {}
        keys = [kept for at, kept in reversed(self.caches) if at == place]
        wanted = [key, *(kept for start in restore_keys.split() for kept in keys if kept.startswith(start))]
        found = next((kept for kept in wanted if kept in keys), "")
        if found:
            shutil.copytree(self.caches[place, found], build.root / place, copy_function=shutil.copy)  # with new dates
        return {"cache-primary-key": key, "cache-hit": str(found == key).lower()}

    def _is_due(self, condition: str | None, build: Build, known: Values) -> bool:
        text = (condition or "").removeprefix("${{").removesuffix("}}").strip()
        if build.status and "!cancelled()" not in text:
            return False
        text = re.sub(r"\b(?:inputs|steps|github)\.[\w.-]+", lambda name: repr(known.get(name[0], "")), text)
        return bool(eval(text.replace("!cancelled()", "True").replace("&&", "and") or "True"))

    def _filled(self, text: str, build: Build, known: Values) -> str:
        """`text` with its expressions `${{ ... }}` evaluated."""

        def value(expression: re.Match[str]) -> str:
            if hashed := re.fullmatch(r"hashFiles\((.+)\)", expression[1]):
                contents = [path.read_bytes() for path in matches(build.root, known[hashed[1]])]
                return hashlib.sha256(b"".join(contents)).hexdigest()
            return known.get(expression[1], "") if expression[1].startswith("steps.") else known[expression[1]]

        return re.sub(r"\$\{\{ (.+?) \}\}", value, text)


def gitlab(job: Mapping[str, Any], root: Path, **variables: object) -> Build:
    """A job of GitLab in the checkout `root`."""
    given = environment(root.parent / "bin", CI_PROJECT_DIR=root, **variables)
    for name, value in job["variables"].items():
        given.setdefault(name, re.sub(r"\$(\w+)", lambda variable: given.get(variable[1], ""), str(value)))
    script = "\n".join([*job["before_script"], *job["script"]])
    done = subprocess.run(
        ["sh", "-ec", script], cwd=root, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return Build(root, done.returncode, done.stdout)
