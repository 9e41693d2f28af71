"""Each option on the command line, in the environment and in the ini-file: what wins, and what the header says."""

from __future__ import annotations

import pytest

from swcheck.run import options

pytestmark = pytest.mark.slow


VALUES = {
    "model": ("one", "two", "three"),
    "candidate": ("one", "two", "three"),
    "device": ("cpu", "cpu:0", "cpu"),
    "dtype": ("float32", "bfloat16", "float16"),
    "limit": ("null=1.02", "null=1.03", "null=1.04"),
}
READ = {
    "model": "[Path(model).name for model in settings.models] == [{!r}]",
    "candidate": "[Path(one).name for one in settings.candidates] == [{!r}]",
    "device": "settings.device == {!r}",
    "dtype": "settings.dtype == {!r}",
    "limit": "settings.limits_for('tiny')['null'].high == float({!r}.removeprefix('null='))",
}
NEEDED = {"update": ["--swcheck-baseline=."]}
"""What else has to be given for a flag to make sense."""

FLAGS = [option.name for option in options.OPTIONS if option.kind == "flag" and option.name != "tensor_parallel"]
"""That of tensor parallel is refused where torchrun has not started the run: ``test_option_tensor_parallel``."""


@pytest.mark.parametrize("name", VALUES)
def test_the_command_line_wins_then_the_environment_then_the_ini_file(
    inner, asking, pytester, monkeypatch, micro, name
):
    """Given in all three places an option has the first value, taken away there the next one; the header names it."""
    line, variable, ini = VALUES[name]
    for folder in VALUES["model"]:
        (pytester.path / folder).symlink_to(micro)
    pytester.makeini(f"[pytest]\nswcheck_{name} = {ini}" + "\nswcheck_model = tiny" * (name == "candidate"))
    monkeypatch.setenv(f"SWCHECK_{name.upper()}", variable)
    for value, origin, flags in (
        (line, "command line", [f"--swcheck-{name}={line}"]),
        (variable, "environment", []),
        (ini, "ini", []),
    ):
        if origin == "ini":
            monkeypatch.delenv(f"SWCHECK_{name.upper()}")
        asking(READ[name].format(value))
        result = inner("test_asking.py", *flags)
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines([f"*{name} *({origin})*"])


@pytest.mark.parametrize("name", FLAGS)
def test_flags_have_three_spellings_too(inner, asking, pytester, monkeypatch, name):
    """A flag is false by default, true from each place, and the environment can take back what the ini-file says."""
    asking(f"settings.{name} is False")
    inner("test_asking.py", "--swcheck-model=tiny").assert_outcomes(passed=1)
    asking(f"settings.{name} is True")
    flag = f"--swcheck-{name.replace('_', '-')}"
    needed = NEEDED.get(name, [])
    judged_nothing = {"errors": int(name == "require")}
    result = inner("test_asking.py", flag, *needed)
    result.assert_outcomes(passed=1, **judged_nothing)
    result.stdout.fnmatch_lines([f"*{name.replace('_', ' ')} (command line)*"])
    monkeypatch.setenv(f"SWCHECK_{name.upper()}", "Yes")
    inner("test_asking.py", *needed).assert_outcomes(passed=1, **judged_nothing)
    monkeypatch.delenv(f"SWCHECK_{name.upper()}")
    pytester.makeini(f"[pytest]\nswcheck_{name} = true")
    inner("test_asking.py", *needed).assert_outcomes(passed=1, **judged_nothing)
    monkeypatch.setenv(f"SWCHECK_{name.upper()}", "0")
    asking(f"settings.{name} is False")
    inner("test_asking.py").assert_outcomes(passed=1)


def test_a_flag_that_is_neither_yes_nor_no_is_refused(inner, monkeypatch):
    """A word for a flag in the environment that means nothing is a usage error that names the variable."""
    monkeypatch.setenv("SWCHECK_OFFLINE", "perhaps")
    result = inner()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: SWCHECK_OFFLINE", "*found: 'perhaps'", "*try: 1 or 0"])


def test_lists_take_several_values_everywhere(inner, asking, pytester, monkeypatch):
    """Several limits are options repeated, words of the ini-file, or parts between commas."""
    asking("[settings.limits_for('tiny')[name].high for name in ('null', 'others')] == [1.02, 1.2]")
    inner("test_asking.py", "--swcheck-limit=null=1.02", "--swcheck-limit=others=1.2").assert_outcomes(passed=1)
    monkeypatch.setenv("SWCHECK_LIMIT", "null=1.02, others=1.2")
    inner("test_asking.py").assert_outcomes(passed=1)
    monkeypatch.delenv("SWCHECK_LIMIT")
    pytester.makeini("[pytest]\nswcheck_limit = null=1.02 others=1.2")
    inner("test_asking.py").assert_outcomes(passed=1)


def test_an_empty_variable_is_no_value(inner, monkeypatch):
    """A variable that is set and empty, as CI systems leave them, asks for nothing."""
    monkeypatch.setenv("SWCHECK_MODEL", "")
    result = inner()
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.no_fnmatch_line("*swcheck: *")


def test_paths_in_an_ini_file_are_meant_from_there(inner, pytester, micro):
    """A text or a model beside the ini-file is found from a subdirectory, too; a known name stays a name."""
    pytester.makeini("[pytest]\nswcheck_model = micro tiny\nswcheck_text = text.txt\nswcheck_json = out/verdicts.json")
    (pytester.path / "text.txt").write_text("some words")
    (pytester.path / "micro").symlink_to(micro)
    below = pytester.mkdir("below")
    (below / "test_it.py").write_text(
        "def test_it(swcheck_session, pytestconfig):\n"
        "    s = swcheck_session.settings\n"
        "    assert s.models == (str(pytestconfig.rootpath / 'micro'), 'tiny')\n"
        "    assert s.text == pytestconfig.rootpath / 'text.txt'\n"
        "    assert s.json == pytestconfig.rootpath / 'out/verdicts.json'\n"
    )
    pytester.chdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(below)
        inner("test_it.py").assert_outcomes(passed=1)
    assert (pytester.path / "out" / "verdicts.json").exists()


def test_help_shows_every_option_with_its_twins(inner):
    """``pytest --help`` has one group with each option, its ini key and its variable, and lists the ini keys."""
    result = inner("--help")
    result.stdout.fnmatch_lines(["swcheck: super weights of language models:"])
    text = " ".join(result.stdout.str().split())
    for option in options.OPTIONS:
        assert f"{option.flag}" in text
        assert f"(ini: {option.dest}, environment: {option.variable})" in text
        assert f"{option.dest} (" in text


def test_markers_are_listed(inner):
    """``pytest --markers`` explains the marker, so that --strict-markers accepts it."""
    inner("--markers").stdout.fnmatch_lines(["@pytest.mark.swcheck(check): *"])


def test_the_ini_file_wins_over_the_table_of_the_project(inner, asking, pytester, micro):
    """A value of [tool.swcheck] counts where no other place gives one; its paths are the project's; limits add up."""
    for folder in ("one", "two"):
        (pytester.path / folder).symlink_to(micro)
    pytester.makepyprojecttoml(
        "[tool.pytest.ini_options]\nswcheck_dtype = 'float16'\nswcheck_limit = ['kl=0.5']\n"
        "[tool.swcheck]\nmodels = ['one']\ncandidates = ['two']\ndtype = 'bfloat16'\n"
        "[tool.swcheck.limits]\nkl = 0.7\nnull = 1.04\n"
    )
    asking(
        "settings.dtype == 'float16' and settings.models == (str(Path('one').absolute()),)"
        " and [settings.limits_for('tiny')[name].high for name in ('kl', 'null')] == [0.5, 1.04]"
    )
    result = inner()
    result.assert_outcomes(passed=1)
    text = " ".join(result.stdout.str().split())
    assert "one (pyproject), candidate" in text
    assert "two named (pyproject.toml), and no check judged it" in text
