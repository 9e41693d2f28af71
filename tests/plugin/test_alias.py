"""``--model`` and ``--candidate``: short names that give way where somebody else owns them."""

from __future__ import annotations

import pytest

OWNER = """
def pytest_addoption(parser):
    parser.addoption("--model", default="none")
    parser.addoption("--candidate", default="none")
"""
THEIRS = """
def test_theirs(pytestconfig):
    assert pytestconfig.getoption("--model") == "juju"
"""


@pytest.mark.parametrize("words", [["--model=tiny"], ["--model", "tiny"]], ids=["equals", "space"])
def test_the_alias_is_the_option(inner, asking, words):
    """``--model`` with its value either way is ``--swcheck-model``."""
    asking("settings.models == ('tiny',) and settings.origins['model'] == 'command line'")
    inner("test_asking.py", *words).assert_outcomes(passed=1)


def test_both_names_add_up(inner, asking, micro):
    """A model by its short name and another by its long one are two models."""
    asking(f"settings.models == ('tiny', {str(micro)!r})")
    inner("test_asking.py", "--model=tiny", f"--swcheck-model={micro}").assert_outcomes(passed=1)


def test_addopts_may_hold_it(inner, asking, monkeypatch, pytester):
    """The alias works in PYTEST_ADDOPTS and in addopts."""
    asking("settings.models == ('tiny',)")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--model=tiny")
    inner("test_asking.py").assert_outcomes(passed=1)
    monkeypatch.delenv("PYTEST_ADDOPTS")
    pytester.makeini("[pytest]\naddopts = --model=tiny")
    inner("test_asking.py").assert_outcomes(passed=1)


@pytest.mark.parametrize("kind", ["type=int", "choices=['a', 'b']", "action='store_true'", "nargs=2"])
def test_an_owner_may_be_choosy(inner, pytester, kind):
    """An owner that takes another kind of value, or none, is an owner all the same."""
    pytester.makeconftest(f"def pytest_addoption(parser): parser.addoption('--model', {kind})")
    pytester.makepyfile("def test_it(): pass")
    words = {"type=int": ["--model=3"], "nargs=2": ["--model", "a", "b"]}.get(kind, ["--model"])
    inner(*(words if "choices" not in kind else ["--model=a"]), "-v").stdout.fnmatch_lines(
        ["swcheck: --model belongs to another plugin here; *", "*1 passed*"]
    )


@pytest.mark.parametrize("strict", [(), ("-W", "error")], ids=["plain", "W-error"])
def test_an_owner_keeps_the_name(inner, pytester, strict):
    """Where a conftest owns --model it gets its value, swcheck stays out of it, and no warning breaks a strict run."""
    pytester.makeconftest(OWNER)
    pytester.makepyfile(THEIRS)
    result = inner("--model=juju", *strict)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*swcheck: *")


def test_the_verbose_header_names_the_long_option(inner, pytester):
    """With -v the header says for each taken name what swcheck's own is called."""
    pytester.makeconftest(OWNER)
    pytester.makepyfile(THEIRS)
    result = inner("--model=juju", "--candidate=x", "-v")
    result.assert_outcomes(passed=1)
    for name in ("model", "candidate"):
        line = f"swcheck: --{name} belongs to another plugin here; swcheck's own is --swcheck-{name}"
        result.stdout.fnmatch_lines([line])


def test_the_long_option_works_beside_an_owner(inner, pytester, asking):
    """--swcheck-model is there whoever owns --model."""
    pytester.makeconftest(OWNER)
    asking("settings.models == ('tiny',)")
    inner("test_asking.py", "--swcheck-model=tiny", "--model=juju").assert_outcomes(passed=1)


def test_an_owner_below_the_root_is_not_disturbed(inner, pytester):
    """A conftest that pytest meets only while collecting may register --model as long as nobody uses ours."""
    below = pytester.mkdir("below")
    (below / "conftest.py").write_text(OWNER)
    (below / "test_it.py").write_text("def test_it(): pass\n")
    inner().assert_outcomes(passed=1)


def test_unused_it_does_not_exist(inner):
    """Without --model on the command line nobody has registered it; the help of the long option names it."""
    shown = inner("--help").stdout
    shown.no_re_match_line(r"\s+--model\b")
    text = " ".join(shown.str().split())
    for name in ("model", "candidate"):
        assert f"--swcheck-{name}=SPEC short: --{name}. " in text


def test_a_hint_names_the_option_that_works(inner, pytester):
    """Where somebody else owns --model, whoever asks for a model is told swcheck's own, used or not."""
    pytester.makeconftest(OWNER)
    pytester.makepyfile("def test_it(swcheck_spec): pass\ndef test_both(swcheck_candidate_spec): pass")
    for words in (["--model=tiny"], []):
        shown = inner(*words, "-rs").stdout
        shown.fnmatch_lines(["SKIPPED * no model given: pytest --swcheck-model=tiny"])
        shown.fnmatch_lines(["SKIPPED * pytest --swcheck-model=REFERENCE --swcheck-candidate=CANDIDATE"])


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--swcheck-model", "--model", "--swcheck-text"])
def test_a_path_after_a_space_that_costs_the_ini_file_is_warned_of(inner, pytester, micro, flag):
    """pytest takes an existing path after a space for a test path and so misses the ini-file: a warning says how to write it."""
    pytester.makeini("[pytest]\n")
    project = pytester.mkdir("project")
    (project / "pytest.ini").write_text("[pytest]\naddopts = -rA\n")
    (project / "test_it.py").write_text("def test_it(): pass\n")
    (pytester.path / "tox.ini").unlink()
    value = micro / "config.json" if flag.endswith("text") else micro
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        result = inner(flag, value, "--co", "-q")
        result.stdout.fnmatch_lines([f"*PytestConfigWarning: write {flag}={value}: *"])
        inner(f"{flag}={value}", "--co", "-q").stdout.no_fnmatch_line("*PytestConfigWarning*")


@pytest.mark.slow
def test_a_path_after_a_space_inside_the_project_is_harmless(inner, pytester, micro):
    """A model below the ini-file does not cost it, and there is no warning."""
    pytester.makeini("[pytest]\naddopts = -q")
    (pytester.path / "models").mkdir()
    (pytester.path / "models" / "micro").symlink_to(micro)
    result = inner("--swcheck-model", "models/micro", "--co")
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*PytestConfigWarning*")


@pytest.mark.slow
def test_a_path_after_a_space_is_harmless_without_an_ini_file(inner, micro):
    """Where there is no ini-file to miss there is no warning, so that -W error does not break the run."""
    result = inner("--swcheck-model", micro, "--co", "-q", "-W", "error")
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*Warning*")
