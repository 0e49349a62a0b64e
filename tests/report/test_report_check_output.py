"""The output of a check for CI services: complete, on lines of its own, and safe with an untrusted report."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import example
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from compressor.errors import OutputError
from compressor.report import Latency, Report, Score, budgets, check_output, gate
from compressor.report.finding import Checked
from compressor.report.markdown import check_to_markdown

BUDGETS = ["macs<=50%", "drop<=0.5", "latency<=1ms", "off: size<=1KB"]
ODD = 'cpu\u2028\n::error::x\x1b[31m\udc80\ufffe|`<b>"'


def checked(report: Report, texts: list[str] = BUDGETS) -> Checked:
    return gate.check(report, budgets.collect(texts))


def odd() -> Report:
    """A report in which every text is malicious."""
    report = example.nasty()
    timed = [Latency(1, 2.0, 2.1, 50, 10, ODD, 1)]
    return replace(report, name=report.name + ODD, verdict=ODD, compressed=replace(report.compressed, latency=timed))


def lines(report: Report, quiet: bool) -> list[str]:
    console = Console(file=io.StringIO(), width=40)
    check_output.print_check(checked(report), console, quiet)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_there_is_one_line_a_budget_however_narrow_the_log() -> None:
    found = lines(odd(), quiet=False)
    assert [line.split()[0] for line in found] == ["ok", "missed", "warn", "off", "FAIL:"]
    assert all(line.isascii() and line.isprintable() for line in found)


def test_quiet_leaves_what_fails_the_check() -> None:
    assert [line.split()[0] for line in lines(example.example(), quiet=True)] == ["missed"]


def test_the_json_tells_every_budget_and_every_figure() -> None:
    report = example.example()
    told = json.loads(check_output.check_to_json(report, checked(report)))
    assert told["passed"] is False and told["verdict"] == "FAIL: 1 of 3 budgets met, 1 missed, 1 warning, 1 off"
    assert told["budgets"][2] == {
        "budget": "latency<=1ms",
        "level": "warn",
        "status": "warn",
        "value": 1.31,
        "limit": 1.0,
        "text": "latency 1.31 ms <= 1.00 ms: over by 0.310 ms, median of 50 runs, batch 1, CPU, 1 thread, p90 1.39 ms",
    }
    assert told["figures"].keys() == set("macs params size_bytes weight_bytes latency_ms top1 top5 drop agreement kl".split())
    blind = example.without_data()
    assert "top1" not in json.loads(check_output.check_to_json(blind, checked(blind)))["figures"]


# GitHub ---------------------------------------------------------------------------------------------------------------


def annotations(report: Report, texts: list[str], environment: dict[str, str]) -> list[str]:
    log = io.StringIO()
    check_output.tell_github(report, checked(report, texts), environment, log)
    return log.getvalue().splitlines()


def test_missed_budgets_annotate_the_build() -> None:
    report = example.example()
    assert annotations(report, BUDGETS, {}) == []
    assert annotations(report, BUDGETS, {"GITHUB_ACTIONS": "true"}) == [
        "::error title=Budget drop<=0.5::drop 0.86 points <= 0.50 points: over by 0.360 points, "
        "87.96 %25 -> 87.10 %25, n = 10,000",
        "::warning title=Budget latency<=1ms::latency 1.31 ms <= 1.00 ms: over by 0.310 ms, "
        "median of 50 runs, batch 1, CPU, 1 thread, p90 1.39 ms",
    ]
    (line,) = annotations(report, ["macs<=1%"], {"GITHUB_ACTIONS": "true"})
    assert line.startswith("::error title=Budget macs<=1%25::")


def test_no_more_annotations_than_are_shown() -> None:
    many = [f"{level}macs<={share}%" for level in ("", "warn: ") for share in range(1, 15)]
    found = annotations(example.example(), many, {"GITHUB_ACTIONS": "true"})
    assert [line.split()[0] for line in found] == 10 * ["::error"] + 10 * ["::warning"]


def test_the_summary_and_the_outputs_of_a_step_are_appended_to(tmp_path: Path) -> None:
    summary, outputs = tmp_path / "summary", tmp_path / "outputs"
    summary.write_text("before\n", encoding="utf-8")
    outputs.write_text("before=1\n", encoding="utf-8")
    report = odd()
    assert annotations(report, BUDGETS, {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(outputs)}) == []
    assert summary.read_text(encoding="utf-8").startswith("before\n### ")
    found = dict(line.split("=", 1) for line in outputs.read_text(encoding="utf-8").splitlines())
    assert found == {
        "before": "1",
        "passed": "false",
        "verdict": "FAIL: 1 of 3 budgets met, 1 missed, 1 warning, 1 off",
        "macs": "20152446",
        "params": "126313",
        "size_bytes": "526659",
        "weight_bytes": "505252",
        "latency_ms": "2",
        "top1": "0.871",
        "top5": "0.9926",
        "kl": "0.0874",
        "drop": "0.0086",
        "agreement": "0.9231",
    }


def test_no_score_replaces_the_result_of_a_check(tmp_path: Path) -> None:
    report = example.example()
    scores = [Score(name, "top-1", 1.0, "%", 2, 10) for name in ("passed", "verdict")]
    report = replace(report, compressed=replace(report.compressed, scores=scores))
    annotations(report, ["macs<=1%"], {"GITHUB_OUTPUT": str(tmp_path / "outputs")})
    lines = (tmp_path / "outputs").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith(("passed", "verdict"))] == [
        "passed=false", "verdict=FAIL: 0 of 1 budgets met, 1 missed",
    ]  # fmt: skip


def test_a_file_that_cannot_be_appended_to_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="could not be written: Is a directory") as caught:
        annotations(example.example(), BUDGETS, {"GITHUB_OUTPUT": str(tmp_path)})
    assert "The variable GITHUB_OUTPUT names this file" in str(caught.value)


def test_the_summary_is_short_and_shows_the_users_text_as_it_is() -> None:
    report = odd()
    text = check_to_markdown(report, checked(report))
    assert len(text) < 5000
    page = MarkdownIt("commonmark").enable("table").render(text)
    assert "<script>" not in page and "<b>" not in page
    tables = re.findall(r"<table>.*?</table>", page, re.S)
    for table in tables:
        cells = {len(re.findall("<t[hd]", row)) for row in re.findall(r"<tr>.*?</tr>", table, re.S)}
        assert len(cells) == 1
    assert len(tables) == 2
    assert [row.split()[1] for row in text.splitlines() if "<=" in row] == ["ok", "**missed**", "warning", "off"]


def test_a_summary_never_grows_beyond_what_is_taken() -> None:
    report = example.example()
    timed = [example.timed(batch, 1.0) for batch in range(20_000)]
    long = replace(report, name="n" * 1_000_000, compressed=replace(report.compressed, latency=timed))
    text = check_to_markdown(long, checked(long))
    assert len(text) < 5000
    assert "The metrics before and after are in `report.html`." in text


# Files ----------------------------------------------------------------------------------------------------------------


def test_junit_has_a_test_case_for_each_budget(tmp_path: Path) -> None:
    report = odd()
    check_output.write_junit(tmp_path / "junit.xml", report, checked(report))
    suites = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert suites.attrib == {"tests": "4", "failures": "1", "errors": "0", "skipped": "1"}
    (suite,) = suites
    assert [case.get("name") for case in suite] == ["macs<=50%", "drop<=0.5", "latency<=1ms", "size<=1KB"]
    assert [[part.tag for part in case][1:-1] for case in suite] == [[], ["failure"], [], ["skipped"]]
    assert {one.get("name"): one.get("value") for one in suite[2].iter("property")} == {
        "level": "warn",
        "value": "2",
        "limit": "1",
    }
    failure = suite[1].find("failure")
    assert failure is not None and "over by 0.360 points" in str(failure.get("message"))
    assert str(suite[2].findtext("system-out")).startswith("warn    latency 2.00 ms <= 1.00 ms")
    blind = example.without_data()
    check_output.write_junit(tmp_path / "junit.xml", blind, checked(blind, ["top1>=90%"]))
    (case,) = ElementTree.parse(tmp_path / "junit.xml").getroot().iter("testcase")
    assert [one.get("name") for one in case.iter("property")] == ["level"]


SAMPLE = re.compile(r'(\w+)((?:\{\w+="[^"\\\n]*"(?:,\w+="[^"\\\n]*")*\})?) (-?[0-9.]+(?:e-?[0-9]+)?)')


def test_metrics_are_openmetrics(tmp_path: Path) -> None:
    report = odd()
    check_output.write_metrics(tmp_path / "metrics.txt", report, checked(report))
    *found, end = (tmp_path / "metrics.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert end == "# EOF"
    values: dict[str, str] = {}
    families: list[str] = []
    for line in found:
        if line.startswith("# TYPE "):
            families.append(line.split()[2])
        elif line.startswith("# UNIT "):
            assert line.split()[2] == families[-1] and families[-1].endswith(f"_{line.split()[3]}")
        else:
            sample = SAMPLE.fullmatch(line)
            assert sample and sample[1] == families[-1] and sample[1] + sample[2] not in values
            values[sample[1] + sample[2]] = sample[3]
    assert len(set(families)) == len(families)
    assert values['compress_macs{network="original"}'] == "40551040"
    assert values['compress_size_bytes{network="compressed"}'] == "526659"
    assert values['compress_top1_ratio{network="compressed"}'] == "0.871"
    assert values['compress_latency_seconds{network="original",batch="32",provider="cpu",threads="1"}'] == "0.0417"
    assert values["compress_agreement_ratio"] == "0.9231"
    assert values['compress_budget_met{budget="macs<=50%",level="error"}'] == "1"
    assert values['compress_budget_met{budget="drop<=0.5",level="error"}'] == "0"


def test_metrics_have_the_unit_of_the_score_in_their_name(tmp_path: Path) -> None:
    report = example.restoration()
    check_output.write_metrics(tmp_path / "metrics.txt", report, checked(report, ["psnr>=28dB"]))
    lines = (tmp_path / "metrics.txt").read_text(encoding="utf-8").splitlines()
    assert 'compress_psnr_db{network="original"} 28.72' in lines and 'compress_ssim{network="compressed"} 0.8071' in lines
    assert "compress_fidelity_psnr_db 41.3" in lines
    assert 'compress_budget_met{budget="psnr>=28dB",level="error"} 1' in lines
