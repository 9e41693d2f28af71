"""``--swcheck-offline``: nothing is fetched, and what is missing is named with the command that fetches it."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from tests.plugin import SHIPPED, refused


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("llama-7b", "hub model huggyllama/llama-7b (llama-7b)"),
        ("LLaMA_7B", "hub model huggyllama/llama-7b (LLaMA_7B)"),
        ("somebody/some-model", "hub model somebody/some-model"),
    ],
)
def test_a_model_that_is_not_here(inner, monkeypatch, name, asked):
    """A known name or hub id that the cache lacks is a usage error with the command that fetches it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    result = inner(f"--model={name}", "--swcheck-offline")
    refused(result, asked, "found: it is not in the local cache, and downloads are forbidden (offline)")
    assert f"hf download {asked.split()[2]}" in result.stderr.str()


@pytest.mark.slow
def test_a_hub_model_in_a_process_of_its_own(outer):
    """Where nothing else has imported the hub's client, a known name that is not here is as worded as ever."""
    result = outer("--model=llama-7b", HF_HUB_OFFLINE="1")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "hf download huggyllama/llama-7b" in result.stderr
    assert "INTERNALERROR" not in result.stdout + result.stderr


def test_the_hubs_own_variable_counts(inner, monkeypatch):
    """HF_HUB_OFFLINE forbids as much as the option does."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(inner("--model=llama-7b"), "downloads are forbidden (offline)")


def test_a_model_that_cannot_be_fetched_is_said_once(inner, monkeypatch):
    """Without offline and without a network the run ends before its first test, with the command that fetches."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    result = inner("--model=tiny", "--candidate=llama-7b", "--swcheck-json=out.json")
    refused(result, "hub model huggyllama/llama-7b (llama-7b)", "the hub cannot be reached", "hf download huggyllama")
    result.stdout.no_fnmatch_line("*loading*")
    assert not Path("out.json").exists()


def test_nothing_is_fetched_unasked(inner, pytester, monkeypatch):
    """A run of which no test asks for a model fetches none, though the ini-file names one."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    pytester.makeini("[pytest]\nswcheck_model = llama-7b")
    pytester.makepyfile("def test_other(): pass")
    inner().assert_outcomes(passed=1)
    assert inner("--model=llama-7b", "--co").ret == 0


def test_the_variable_is_taken_back(inner, asking, monkeypatch):
    """During the run every library is told by HF_HUB_OFFLINE; afterwards the environment is as before."""
    import os

    monkeypatch.delenv("HF_HUB_OFFLINE")
    asking("__import__('os').environ['HF_HUB_OFFLINE'] == '1' and settings.offline")
    inner("test_asking.py", "--swcheck-offline").assert_outcomes(passed=1)
    assert "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.slow
def test_a_directory_needs_no_network(inner, micro):
    """What lies on the disk is loaded all the same."""
    words = (f"--model={micro}", "--swcheck-offline", "-k", "test_model and perplexity")
    inner(*words).assert_outcomes(passed=1, deselected=SHIPPED - 1)
