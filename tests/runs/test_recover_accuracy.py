"""The notes of a stage of recovery."""

from compressor.runs.recover_accuracy import not_repaired


def test_layers_that_were_not_repaired_are_named_with_the_reason() -> None:
    left = {**dict.fromkeys("abcde", "it is called twice"), "f": "it is never called"}
    assert not_repaired(left) == "; not a, b, c and 2 more (it is called twice); not f (it is never called)"
    assert not_repaired({}) == ""
