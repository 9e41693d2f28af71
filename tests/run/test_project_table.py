"""The table ``[tool.swcheck]``: what it gives, and that nothing in it is ignored in silence."""

from __future__ import annotations

import pytest

from swcheck.base.errors import OptionError
from swcheck.run.limit_overrides import parse_overrides
from swcheck.run.options import OPTIONS
from swcheck.run.project_table import read_table

KINDS = {option.name: option.kind for option in OPTIONS}


@pytest.fixture
def table(tmp_path):
    """Read a table from its text."""

    def read(text):
        (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
        return read_table(tmp_path / "pyproject.toml", KINDS)

    return read


def test_every_kind_of_value_is_given_as_the_ini_file_gives_it(table):
    """Lists, one text for a list, flags, texts, and limits of all and of one model, which parse as limits."""
    found = table(
        '[tool.swcheck]\nmodels = "llama-7b"\ncandidates = ["a", "b"]\noffline = true\nallow-none = false\ntier = "full"\n'
        '[tool.swcheck.limits]\nperplexity = 1.03\nactivation = [0.8, 1.5]\nkl = "reported"\n'
        '[tool.swcheck.limits."torchao:*"]\nkl = 0.02\n'
    )
    assert found == {
        "model": ["llama-7b"],
        "candidate": ["a", "b"],
        "offline": True,
        "allow_none": False,
        "tier": "full",
        "limit": ["perplexity=1.03", "activation=0.8..1.5", "kl=reported", "torchao:*:kl=0.02"],
    }
    overrides = parse_overrides(found["limit"], "pyproject")
    assert [one.limit.source for one in overrides][::3] == [
        "given in pyproject.toml",
        "given in pyproject.toml for torchao:*",
    ]


@pytest.mark.parametrize("text", ["", "[tool.other]\nmodel = 1\n", "[tool.swcheck]\n", "broken = [\n"])
def test_a_project_without_the_table_gives_nothing(table, text):
    """Another tool's tables, an empty one, a file that somebody else will complain about: no option is set."""
    assert table(text) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modles = ['a']", "try: models?"),
        ("zzz = 1", "known: accept, "),
        ("model = 'a'\nmodels = ['b']", "model is given twice"),
        ("models = [1]", "a text in quotes, or a list of them"),
        ("offline = 'yes'", "true or false"),
        ("tier = 3", "a text in quotes"),
        ("limits = {perplexty = 1.1}", "try: perplexity?"),
        ("limits = {kl = true}", "kl = 1.03"),
        ("limits = {a = {b = {kl = 1}}}", "limit 'b'"),
        ("models = [", "repair the file"),
        (f"models = {'[' * 5000}{']' * 5000}", "repair the file"),
        (f"limits = {{kl = [0x{'f' * 5000}, 1]}}", "a whole number of more than 64 bits"),
        (f"offline = {2**63}", "a whole number of more than 64 bits"),
        (f"offline = {2**63 - 1}", "true or false"),
    ],
)
def test_what_no_option_takes_is_refused(table, text, said):
    """A wrong key is answered with the nearest right one, a wrong value with a right one; the file is named."""
    with pytest.raises(OptionError) as error:
        table(f"[tool.swcheck]\n{text}\n")
    assert said in str(error.value)
    assert "pyproject.toml" in str(error.value)


def test_what_is_no_table_is_refused(table):
    """A value in place of the table is told."""
    with pytest.raises(OptionError, match="no table"):
        table('tool.swcheck = "tiny"  # [tool.swcheck')
