"""Lines for a terminal: nothing is lost, nothing is too wide that could be narrower, and what is pasted stays whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swcheck.base.terminal.wrapping import MAX_WIDTH, MIN_WIDTH, wrapped, wrapped_error, wrapped_rows

words = st.lists(st.text("abc-=/:", min_size=1, max_size=30), min_size=1, max_size=30).map(" ".join)


@given(words, st.integers(1, 300), st.integers(0, 60))
def test_folding_keeps_every_word(text, width, indent):
    """The words are those of the text in their order, and a line is too wide only where one word is."""
    lines = wrapped(text, width, indent)

    assert " ".join(lines).split() == text.split()
    wide = max(MIN_WIDTH, min(width, MAX_WIDTH))
    assert all(len(line) <= wide or len(line.split()) == 1 for line in lines)


def test_without_a_terminal_nothing_is_folded():
    """What goes into an exception stays a line, to be searched and matched."""
    assert wrapped("word " * 99, None) == ["word " * 99]
    assert wrapped_rows([("proof", "x1.000 " * 80)], None) == ["  proof  " + "x1.000 " * 80]


def test_rows_have_their_texts_in_a_column():
    """Under a text stands the rest of it; a long name moves only the texts of other long names."""
    lines = wrapped_rows(
        [("proof", "x1.000 " * 8), ("ruled out", "this"), ("layers.0.self_attn.k_proj", "77 % off")], 60
    )

    assert lines == [
        "  proof      x1.000 x1.000 x1.000 x1.000 x1.000 x1.000",
        "             x1.000 x1.000",
        "  ruled out  this",
        "  layers.0.self_attn.k_proj  77 % off",
    ]


def test_an_error_keeps_the_line_to_paste():
    """What was asked and found is folded, what to try is not."""
    long = "pip install " + " ".join(f"package-{number}" for number in range(9))
    shown = wrapped_error(f"a model\n  found: {long}\n  try: {long}", 60).splitlines()

    assert shown[0] == "a model"
    assert shown[1].startswith("  found: pip install package-0")
    assert shown[2].startswith("         package-")
    assert shown[-1] == f"  try: {long}"


def test_a_label_is_not_left_alone():
    """A path that is too long for the rest of the line stands behind its label all the same."""
    path = "/a" * 60
    assert wrapped_error(f"write x\n  found: {path} is a file\n  try: y", 60).splitlines()[1:] == [
        f"  found: {path}",
        "         is a file",
        "  try: y",
    ]
