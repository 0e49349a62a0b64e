"""Check the scores in a report against budgets. Which scores there are, and their units, is known from the report alone."""

from __future__ import annotations

from dataclasses import replace

from compressor.report import formatting
from compressor.report.budgets import DROP, Budget
from compressor.report.finding import Finding
from compressor.report.schema import Difference, Profile, Report, Score, headline, named

MOST_NAMES = 9  # of scores that are listed


def judge(budget: Budget, report: Report, baseline: Report | None) -> Finding:
    """The finding on a budget that limits a score, or the drop of the headline score."""
    of, beside = _score(budget, report), budget.limit.beside
    if of is None:
        return Finding(budget, None, None, f"{budget.text}: not measured; {_missing(report)}")
    if wrong := _mistake(budget, report, of):
        return Finding(budget, None, None, f"{budget.text}: {wrong}")
    if _figure(budget, report, report.compressed, of, None) is None:
        return Finding(budget, None, None, f"{budget.text}: the original was not measured; rerun with --data")
    value = _figure(budget, report, report.compressed, of, budget.bound)
    if value is None:
        return Finding(budget, None, None, f"{budget.text}: measured without a 95 % interval; use {budget.name}")
    other = _other(budget, report, baseline, of)
    if other is None:
        todo = "rerun with --data" if beside == "original" else "use another --baseline"
        return Finding(budget, value, None, f"{budget.text}: the {beside} was not measured; {todo}")
    limit = other + _amount(budget, of)
    shown = replace(of, unit=_unit(of))
    asked = f"{budget.of} {_written(budget, value, shown)} {budget.relation} {_asked(budget, other, shown)}"
    found = Finding(budget, value, limit, asked)
    change = "" if beside is None else formatting.difference(value - other, shown)
    remarks = [change, _excess(found, shown), *_how(budget, report, shown, of), _caveat(budget, report, baseline)]
    told = ", ".join(remark for remark in remarks if remark)
    return replace(found, text=f"{asked}: {told}" if told else asked)


def measured(report: Report) -> dict[str, float]:
    """The scores of the compressed network, those that compare it with the original, and the drop."""
    found: dict[str, float] = {}
    for score in [*report.compressed.scores, *_of_fidelity(report)]:
        found.setdefault(score.name, score.value)
    of = headline(report.compressed.scores)
    drop = None if of is None else _drop(report, of, None)
    return found if drop is None else found | {DROP: drop}


# Values ---------------------------------------------------------------------------------------------------------------


def _score(budget: Budget, report: Report) -> Score | None:
    """The score that a budget is about; for the drop, the headline score."""
    scores = report.compressed.scores
    return headline(scores) if budget.name == DROP else named([*scores, *_of_fidelity(report)], budget.name)


def _of_fidelity(report: Report) -> list[Score]:
    return report.fidelity.scores if report.fidelity else []


def _compares(budget: Budget, report: Report) -> bool:
    """Whether the score compares with the original."""
    return budget.name != DROP and named(report.compressed.scores, budget.name) is None


def _figure(budget: Budget, report: Report, network: Profile, of: Score, bound: str | None) -> float | None:
    """The value of the score `of`, or a bound of its interval, in one of the networks of a report."""
    if budget.name == DROP:
        return _drop(report, of, bound)
    found = named([*network.scores, *_of_fidelity(report)], of.name, of.unit)
    return None if found is None else {None: found.value, "low": found.low, "high": found.high}[bound]


def _drop(report: Report, of: Score, bound: str | None) -> float | None:
    """By how much the score `of` of the compressed network is worse than that of the original; or a bound of it."""
    before, after = (named(network.scores, of.name, of.unit) for network in (report.baseline, report.compressed))
    if before is None or after is None:
        return None
    worse = _worse(report.change.scores.get(of.name, Difference(0.0)), of)
    return {None: of.sign * (before.value - after.value), "low": worse.low, "high": worse.high}[bound]


def _worse(change: Difference, of: Score) -> Difference:
    """A difference, counted so that more is worse."""
    if change.low is None or change.high is None:
        return Difference(-of.sign * change.value)
    low, high = sorted((-of.sign * change.low, -of.sign * change.high))
    return Difference(-of.sign * change.value, low, high)


def _other(budget: Budget, report: Report, baseline: Report | None, of: Score) -> float | None:
    """The value that the limit is relative to, even if the budget is on a bound; 0 for an absolute limit."""
    if budget.limit.beside is None:
        return 0.0
    if budget.limit.beside == "original":
        return _figure(budget, report, report.baseline, of, None)
    assert baseline is not None, "`collect` saw to it"
    return _figure(budget, baseline, baseline.compressed, of, None)


def _amount(budget: Budget, of: Score) -> float:
    """The number in the limit; one without a unit has that of the score."""
    limit = budget.limit
    return limit.amount / 100 if of.unit == "%" and not limit.unit else limit.amount


# Text of a finding ----------------------------------------------------------------------------------------------------


def _missing(report: Report) -> str:
    """What to do about a score that was not measured."""
    if not report.compressed.scores:
        return "rerun with --data"
    names = [score.name for score in [*report.compressed.scores, *_of_fidelity(report)]]
    return f"the report has {', '.join(list(dict.fromkeys(names))[:MOST_NAMES])}"


def _mistake(budget: Budget, report: Report, of: Score) -> str:
    """What is wrong with a budget on the score `of`, and how to write it; empty if nothing is."""
    limit, needs = budget.limit, ">=" if of.more_is_better else "<="
    unit = _unit(of)
    if budget.name == DROP:
        needs, example = "<=", f"{DROP}<=1{'' if of.unit == '%' else unit}"
    else:
        example = f"{budget.of}{needs}{formatting.scaled(of.value, of):.{of.places}f}{unit}"
    if budget.relation != needs:
        return f"{budget.name} needs {needs}; write it like {example}"
    if limit.beside == "original" and _compares(budget, report):
        return f"{budget.name} already compares with the original; write it like {example}"
    if limit.unit:
        wrong = limit.unit.lower() != of.unit.lower() and f"{budget.name} {f'is in {unit}' if unit else 'has no unit'}"
    else:
        bare = not limit.amount or budget.name == DROP or of.unit != "%"
        wrong = not bare and "a unit is missing"
    return f"{wrong}; write it like {example}" if wrong else ""


def _unit(of: Score) -> str:
    """Made safe for build logs, where some CI services execute what looks like a command."""
    return of.unit if of.unit == "%" else formatting.plain(of.unit)


def _written(budget: Budget, value: float, of: Score) -> str:
    if budget.name != DROP:
        return formatting.in_unit(value, of)
    return f"{formatting.scaled(value, of):.{of.places}f} {formatting.points_or_unit(of)}".rstrip()


def _asked(budget: Budget, other: float, of: Score) -> str:
    """`90.00 %`, `original (87.96 %) - 1 %`, `baseline (28.72 dB)`."""
    amount = _amount(budget, of)
    if budget.limit.beside is None:
        return _written(budget, amount, of)
    much = f"{abs(formatting.scaled(amount, of)):g} {of.unit}".rstrip()
    change = f" {'-' if amount < 0 else '+'} {much}" if amount else ""
    return f"{budget.limit.beside} ({_written(budget, other, of)}){change}"


def _excess(found: Finding, of: Score) -> str:
    """By how much the budget is missed, with three significant digits."""
    if found.met or found.value is None or found.limit is None:
        return ""
    much = formatting.three_digits(formatting.scaled(abs(found.value - found.limit), of))
    return f"{'short' if found.budget.relation == '>=' else 'over'} by {much} {formatting.points_or_unit(of)}".rstrip()


def _how(budget: Budget, report: Report, shown: Score, of: Score) -> list[str]:
    """The interval, and the images that it was measured on."""
    if _compares(budget, report):
        assert report.fidelity is not None
        return [_interval(formatting.interval(shown)), f"{report.fidelity.n:,} {formatting.plain(report.fidelity.inputs)}"]
    if budget.name != DROP:
        return [_interval(formatting.interval(shown)), formatting.images(of.n)]
    before = named(report.baseline.scores, of.name, of.unit)
    assert before is not None, "else there is no drop"
    worse = _worse(report.change.scores.get(of.name, Difference(0.0)), of)
    interval = _interval(formatting.difference_interval(worse, shown).replace("+", ""))
    return [f"{formatting.in_unit(before.value, shown)} -> {formatting.score(shown)}", interval, formatting.images(of.n)]


def _interval(text: str) -> str:
    return f"95 % interval {text}" if text else ""


def _caveat(budget: Budget, report: Report, baseline: Report | None) -> str:
    """The number of images of the baseline, if it is another one."""
    if budget.limit.beside != "baseline" or baseline is None:
        return ""
    now, then = _score(budget, report), _score(budget, baseline)
    return f"baseline {formatting.images(then.n)}" if now and then and now.n != then.n else ""
