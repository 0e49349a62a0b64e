"""Kill a run a few times; `python tests/kills.py` does so hundreds of times."""

from pathlib import Path

from kills import Killer, table


def test_a_run_that_is_killed_at_any_moment_ends_as_one_that_was_not(project: Path) -> None:
    kills = Killer(project, seed=3, cases=["sfp"]).kill(4)
    assert len({kill.during for kill in kills}) > 1, table(kills)
