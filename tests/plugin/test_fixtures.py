"""The fixtures that tests of one's own ask for, and what a red assertion looks like there."""

from __future__ import annotations

import pytest

from tests.plugin import SHIPPED


def test_what_they_give(inner, pytester, brief):
    """Model, super weights, activations, text and limits are what the front door calls them, the same in every test."""
    pytester.makepyfile(
        test_own="""
        from swcheck import SuperWeight, assert_collapses_when_zeroed

        KEPT = []

        def test_model(swcheck_model, swcheck_reference, swcheck_spec):
            assert swcheck_model is swcheck_reference
            assert (swcheck_model.name, swcheck_spec) == ("tiny", "tiny")
            assert swcheck_model.tokenizer("x")["input_ids"]
            KEPT.append(swcheck_model)

        def test_same_model(swcheck_model):
            assert swcheck_model is KEPT[0]

        def test_super_weights(super_weights, swcheck_super_weights, super_activations, swcheck_super_activations):
            assert super_weights is swcheck_super_weights
            assert super_activations is swcheck_super_activations
            assert super_weights == (SuperWeight(1, 97, 301),)
            assert super_activations[0].channel == 97

        def test_text(swcheck_text):
            assert len(swcheck_text) == 4000

        def test_limits(swcheck_limits):
            assert swcheck_limits["collapse"].low == 10

        def test_module(swcheck_model):
            assert type(swcheck_model.model).__name__ == "LlamaForCausalLM"
        """
    )
    inner("--model=tiny", brief, "test_own.py").assert_outcomes(passed=6)


def test_a_fixture_may_be_replaced(inner, pytester):
    """A project's conftest may put its own in the place of a fixture, and the shipped checks use it."""
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="session")
        def swcheck_limits():
            pytest.skip("mine")
        """
    )
    inner("--model=tiny", "-k", "collapse").assert_outcomes(skipped=1, deselected=SHIPPED - 1)


@pytest.mark.slow
def test_every_model_is_tried_and_the_one_before_is_freed(inner, pytester, micro):
    """A test runs once for each model, and the weights of the one before are given back."""
    pytester.makepyfile(
        test_own="""
        BEFORE = []

        def test_one(swcheck_model):
            BEFORE.append(swcheck_model.model)
            assert not BEFORE[-1].lm_head.weight.is_meta
            assert all(module.lm_head.weight.is_meta for module in BEFORE[:-1])
        """
    )
    result = inner("--model=tiny", f"--model={micro}", "test_own.py", "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["test_own.py::test_one[[]tiny] PASSED*", "test_own.py::test_one[[]micro] PASSED*"])


@pytest.mark.slow
def test_a_failure_shows_the_line_of_the_test_and_no_depths(inner, pytester, brief):
    """In a test of one's own a red assertion shows the calling line and the words, nothing of swcheck's inside."""
    pytester.makepyfile(
        test_own="""
        from swcheck import SuperWeight, assert_collapses_when_zeroed

        def test_it(swcheck_model):
            assert_collapses_when_zeroed(swcheck_model, super_weights=[SuperWeight(0, 0, 0)])

        def test_usage(swcheck_model):
            assert_collapses_when_zeroed(swcheck_model, super_weights=[SuperWeight(99, 0, 0)])
        """
    )
    result = inner("--model=tiny", brief, "test_own.py")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            ">       assert_collapses_when_zeroed(swcheck_model, super_weights=[[]SuperWeight(0, 0, 0)])",
            "E       *the model does not hang on its super weights*",
            "test_own.py:4: RobustnessError",
            ">       assert_collapses_when_zeroed(swcheck_model, super_weights=[[]SuperWeight(99, 0, 0)])",
            "E       *CoordinateError: *",
            "FAILED test_own.py::test_it[[]tiny] - the model does not hang on its super weights*",
            "FAILED test_own.py::test_usage[[]tiny] - *",
        ]
    )
    result.stdout.no_fnmatch_line("*checks.py*")
    result.stdout.no_fnmatch_line("*anatomy.py*")


@pytest.mark.slow
@pytest.mark.parametrize("style", ["auto", "long", "short", "line", "native", "no"])
def test_every_style_of_traceback_shows_the_words(inner, pytester, brief, style):
    """Whatever --tb says, a red assertion in a test of one's own is shown without an accident, its words in the summary."""
    pytester.makepyfile(
        test_own="""
        from swcheck import SuperWeight, assert_collapses_when_zeroed

        def test_it(swcheck_model):
            assert_collapses_when_zeroed(swcheck_model, super_weights=[SuperWeight(0, 0, 0)])
        """
    )
    result = inner("--model=tiny", brief, "test_own.py", f"--tb={style}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["FAILED test_own.py::test_it[[]tiny] - the model does not hang on its super weights*"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    if style != "native":  # Python's own, with every frame, is what that one asks for
        result.stdout.no_fnmatch_line("*checks.py*")


@pytest.mark.slow
def test_full_trace_shows_all(inner, pytester, brief):
    """--full-trace shows swcheck's inside to whoever looks for a bug there."""
    pytester.makepyfile(
        test_own="""
        from swcheck import SuperWeight, assert_collapses_when_zeroed

        def test_it(swcheck_model):
            assert_collapses_when_zeroed(swcheck_model, super_weights=[SuperWeight(99, 0, 0)])
        """
    )
    inner("--model=tiny", brief, "test_own.py", "--full-trace").stdout.fnmatch_lines(["*anatomy.py*"])


@pytest.mark.slow
def test_hypothesis_may_ask_for_them(inner, pytester, brief):
    """A test of hypothesis may ask for the fixtures: they live for the whole run."""
    pytester.makepyfile(
        test_own="""
        from hypothesis import given, settings
        from swcheck import assert_super_activations_preserved
        from swcheck.strategies import prompts

        @settings(max_examples=2, database=None, deadline=None)
        @given(prompt=prompts())
        def test_it(swcheck_model, prompt):
            assert_super_activations_preserved(swcheck_model, swcheck_model, prompts=[prompt])
        """
    )
    inner("--model=tiny", brief, "test_own.py").assert_outcomes(passed=1)


@pytest.mark.slow
def test_a_red_verdict_that_was_expected_is_not_reported(inner, pytester, brief):
    """A test that passes because it expects the assertion to fail leaves no red row in the table."""
    pytester.makepyfile(
        test_own="""
        import pytest
        from swcheck import RobustnessError, SuperWeight, assert_collapses_when_zeroed

        def test_it(swcheck_model):
            with pytest.raises(RobustnessError):
                assert_collapses_when_zeroed(swcheck_model, super_weights=[SuperWeight(0, 0, 0)])
        """
    )
    result = inner("--model=tiny", brief, "test_own.py")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*FAILED*")
    result.stdout.no_fnmatch_line("*not covered*")


def test_quiet_is_quiet(inner, brief):
    """With -q nothing is said about loading; the table is still there."""
    result = inner("--model=tiny", brief, "-q", "-k", "test_model and perplexity")
    result.stdout.no_fnmatch_line("*loading*")
    result.stdout.fnmatch_lines(["perplexity * passed"])


@pytest.mark.slow
def test_without_capturing_too(inner, brief):
    """-p no:capture and -s change nothing but where the output goes."""
    for words in (("-p", "no:capture"), ("-s",)):
        inner("--model=tiny", brief, "-k", "test_model and perplexity", *words).assert_outcomes(
            passed=1, deselected=SHIPPED - 1
        )


def test_without_a_terminal_reporter_the_file_is_written(inner, brief, pytester):
    """-p no:terminal takes the table away, not the verdicts."""
    inner("--model=tiny", brief, "-p", "no:terminal", "-k", "test_model and perplexity", "--swcheck-json=out.json")
    assert (pytester.path / "out.json").exists()


@pytest.mark.slow
def test_without_a_terminal_reporter_a_red_test_is_red(inner, pytester):
    """-p no:terminal takes the options for tracebacks away, too: a failure of a test's own is still told."""
    pytester.makepyfile("import swcheck\ndef test_mine(swcheck_spec): swcheck.load('tinny')")
    result = inner("--model=tiny", "-p", "no:terminal", "-k", "test_mine")
    assert result.ret == pytest.ExitCode.TESTS_FAILED, result.stdout.str()


def test_an_accident_in_a_shipped_check_is_red_with_its_cause(inner, monkeypatch, brief):
    """An error nobody foresaw inside a shipped check is a failed verdict with its first line, not a missing one."""
    monkeypatch.setattr("swcheck.suite.test_model.assert_perplexity_within", lambda *_: 1 / 0)
    result = inner("--model=tiny", brief, "-k", "test_model and perplexity")
    result.assert_outcomes(failed=1, deselected=SHIPPED - 1)
    result.stdout.fnmatch_lines(["perplexity * FAILED", "perplexity *ZeroDivisionError: division by zero*"])
