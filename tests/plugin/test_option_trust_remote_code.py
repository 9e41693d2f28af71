"""``--swcheck-trust-remote-code``: the only way by which the Python of a checkpoint runs."""

from __future__ import annotations

import pytest

from tests import checkpoints
from tests.plugin import SHIPPED, refused


def test_refused_without_it(inner, tmp_path):
    """A model that only its own Python can build is refused, the option named, and that Python has not run."""
    folder = checkpoints.copy_of_tiny(tmp_path / "homemade", checkpoints.bringing_code)
    refused(inner(f"--model={folder}"), "--swcheck-trust-remote-code")
    refused(inner("--model=tiny", f"--candidate={folder}"), "--swcheck-trust-remote-code")
    assert not (folder / "exploded").exists()


@pytest.mark.slow
def test_it_runs_with_it(inner, tmp_path, monkeypatch):
    """With the option the checkpoint's own class is loaded, and its Python has run."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = checkpoints.copy_of_tiny(tmp_path / "homemade", checkpoints.bringing_code)
    inner(f"--model={folder}", "--swcheck-trust-remote-code", "-k", "test_model and perplexity").assert_outcomes(
        passed=1, deselected=SHIPPED - 1
    )
    assert (folder / "exploded").read_text() == checkpoints.MARK


@pytest.mark.slow
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_is_not_needed_does_not_run(inner, tmp_path, file):
    """Where transformers knows the type, a checkpoint that also brings code is loaded without it, or refused."""

    def also_brings(folder):
        import json

        entries = json.loads((folder / file).read_text())
        names = {"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.Config", "AutoTokenizer": ["code.Tok", None]}
        (folder / file).write_text(json.dumps({**entries, "auto_map": names}))

    folder = checkpoints.copy_of_tiny(tmp_path / "both", checkpoints.bringing_code)
    checkpoints.config(model_type="llama", auto_map=None)(folder)
    also_brings(folder)
    result = inner(f"--model={folder}", "-k", "test_model and perplexity")
    assert set(result.parseoutcomes()) <= {"passed", "errors", "deselected"}
    assert not (folder / "exploded").exists()
