"""``swcheck study``: what is printed, what is written, what is refused."""

from __future__ import annotations

import json

import pytest

from swcheck.run.command_line.main import main
from swcheck.study.chapters import scaling
from tests import checkpoints


@pytest.fixture
def run(capsys, monkeypatch):
    """The command line in this process, with figure 6 at three alphas: its exit code and what it wrote."""
    monkeypatch.setattr(scaling, "ALPHAS", (0.0, 1.0, 1.5))
    monkeypatch.setattr("swcheck.study.zeroshot.harness.missing_packages", lambda: "lm_eval not installed")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["study", *arguments])
        written = capsys.readouterr()
        return code, written.out, written.err

    return call


@pytest.mark.slow
def test_a_study_prints_its_table_and_leaves_its_files(run, tmp_path):
    """Table, verdict and what was left out on stdout; record, rows, picture and a page of all in the folder."""
    code, out, err = run("tiny", "scaling", "--out", str(tmp_path))

    assert code == 0
    assert out.splitlines()[0] == "scaling: Scaling the super weights (figure 6)"
    assert "zero-shot accuracy is left out: lm_eval not installed (pip install 'swcheck[zero-shot]')" in out
    assert {path.name for path in tmp_path.iterdir()} == {"scaling.json", "scaling.csv", "scaling.png", "README.md"}
    assert f"written: {tmp_path / 'README.md'}" in err


@pytest.mark.slow
def test_json_is_all_that_goes_to_stdout(run):
    """A list of records, whatever else there is to say."""
    code, out, _ = run("tiny", "scaling", "--json")

    assert code == 0
    (record,) = json.loads(out)
    assert (record["study"], record["model"]) == ("scaling", "tiny")


@pytest.mark.slow
def test_published_numbers_stand_beside_the_measured_ones(run, tmp_path):
    """Said which published model a directory holds, each cell is compared or says why not; suspects never are."""
    code, out, _ = run("tiny", "scaling", "--out", str(tmp_path), "--compare-paper=llama-7b")

    assert code == 0
    assert "published and measured: " in out
    assert "an average of seven tasks" in out
    assert "## Published and measured" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tiny", "scalnig"), "a study called 'scalnig'\n  found: there are "),
        (("tiny", "scaling", "--compare-paper"), "published numbers of tiny in scaling\n  found: there are none"),
        (("tiny", "scaling", "--text", "nowhere.txt"), "nowhere.txt"),
        (("no-such-model", "scaling"), "model 'no-such-model'"),
        (("no-such-model", "scaling", "--out", "a\0b"), "null byte"),
    ],
)
def test_bad_input_is_refused_in_words(run, arguments, words):
    """Asked, found, try; exit 2, and nothing on stdout."""
    code, out, err = run(*arguments)

    assert (code, out) == (2, "")
    assert words in err


@pytest.mark.slow
def test_a_model_without_super_weights_says_what_was_seen(run, tmp_path):
    """There is nothing to study, and the reason has numbers."""
    code, _, err = run(str(checkpoints.micro(tmp_path / "micro")), "scaling")

    assert code == 2
    assert "super weights of micro to study" in err
    assert "none found" in err
