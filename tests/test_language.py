"""The field's terms in everything that users and contributors read: messages, help, documentation, docstrings, comments."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READ = "*.md docs/**/*.md examples/**/*.md compressor/**/*.py compressor/**/*.jinja docs/*.py examples/**/*.py".split()

# What is never written, and what is written instead.
FORBIDDEN = {
    r"without a word|says? so plainly|nothing need be said": "silently; is reported",
    r"(is|are|was|were|be|measured|made|written|chosen|set|starts?|begins?) anew": "again; re-run, regenerate, re-estimate",
    r"goes? with (it|them)\b|live and die together|what goes together": "coupled channels; is pruned with",
    r"channels? (must|had to|have to) stay(?! equal)|has to stay whole": "cannot be pruned",
    r"what (reads?|read) (the )?(cut|pruned) channels|refitted to what": "the consumers of pruned channels are re-estimated",
    r"answers? as (the|PyTorch)|what (the original|a network) (answers|gives)|how often it answers": "predicts; outputs",
    r"(softened|teacher's) answers|same top-1 answer": "outputs, logits, predictions",
    r"(is|are|was|were) taught (by|alike)|who learns from whom|learns? from each other's": "distilled; teacher and student",
    r"turn(ed|s)? (images )?four ways|class and (which )?turn\b": "rotated by 0, 90, 180 and 270 degrees",
    r"the small (network|model)\b": "the compressed (pruned) network",
    r"the uncut (network|reference)": "the unpruned network, the dense baseline",
    r"(measured|timed|run) in turns|\bt(ake|akes|ook) turns\b": "interleaved",
    r"held against (a |an |the |its |their )?(own |earlier )?(report|budget|run)": "checked against, compared with",
    r"(put|puts|putting) back (at its places |at their places )?(among|into) zeros": "scattered into a zero tensor",
    r"widths that are not whole|counted as papers do": "fractional channel counts",
    r"(a|from a|of) strangers?\b|strangers?'s?\b": "untrusted",
    r"stands? beside|stand side by side": "is listed next to",
    r"carries? out like|carry it out": "run",
    r"goes on (with it|after|from)|go on from there|--resume goes on": "continue, resume",
    r"[Ll]eave (it|them|one|--[a-z-]+) away|left away\b": "omit, remove",
    r"MACs gone|parameters gone|what is left of the cost": "MACs removed",
    r"for want of": "out of, no",
    r"by rule of thumb": "by a heuristic",
    r"laid aside|kept apart": "held out",
    r"settings that this command line does not": "not given on the command line",
    r"moved and mirrored": "randomly cropped and flipped",
    r"kept as asked|asked for less|nothing has changed since": "excluded by --keep; requested; unchanged",
    r"proves nothing|is in nobody's way|has a say in": "say what it does",
    r"were only tried|that are only tried|not at hand|was at hand": "tested; unavailable",
    r"\bspeaks? of (a|it|the)\b|names no data\b": "has, contains, refers to",
    r"mend the data set|make the run (again|with)": "fix; re-run",
    r"not on equal terms": "with different settings",
    r"ended before its time|ended without": "exited unexpectedly",
}


def plain(path: Path) -> str:
    """The text with its line breaks, indentation and comment signs taken out, so that a phrase is found across lines."""
    return re.sub(r"\s+(#\s+)?", " ", path.read_text(encoding="utf-8"))


def offences(text: str) -> list[str]:
    found = []
    for pattern, instead in FORBIDDEN.items():
        for match in re.finditer(pattern, text):
            around = text[max(0, match.start() - 40) : match.end() + 40]
            found.append(f"{match[0]!r} in {around!r}: write {instead}")
    return found


@pytest.mark.parametrize("pattern", READ)
def test_what_is_read_is_written_in_the_fields_terms(pattern: str) -> None:
    paths = sorted(ROOT.glob(pattern))
    assert paths
    found = [f"{path.relative_to(ROOT)}: {offence}" for path in paths for offence in offences(plain(path))]
    assert not found, "\n".join(found)


def test_a_phrase_is_found_across_lines_and_in_comments() -> None:
    (found,) = offences(re.sub(r"\s+(#\s+)?", " ", "# is measured\n    # anew"))
    assert found.startswith("'measured anew'")
