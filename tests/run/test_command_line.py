"""``swcheck locate`` and ``swcheck index``: answers on stdout, everything else on stderr, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import warnings

import pytest

from swcheck.base.output_files import write_atomically
from swcheck.run.command_line import main as command_line
from swcheck.run.command_line.common import layout
from swcheck.run.command_line.main import documentation
from tests import checkpoints, damage
from tools.outputs import ROOT


def constant(name):
    pytest.fail(f"a bare {name} in JSON")


@pytest.mark.slow
def test_locate(run):
    """The located weight, what it writes, and what each round saw."""
    code, out, err = run("locate", "tiny", "--device=cpu", "--verify", "--no-index")
    assert (code, err) == (0, "")
    assert ", all zeroed together x" in out.splitlines()[-2]
    assert out.splitlines()[-1].startswith("strongest other scalar: layer ")
    assert out.startswith("tiny: 1 super weight found")
    assert "layer 1 [97, 301]" in out
    assert "round 2" in out
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.slow
def test_locate_as_json(run):
    """Nothing but JSON on stdout: the model, its super weights with coordinates and value, and why."""
    code, out, err = run("locate", "tiny", "--json", "--verify", "--dtype=float32")
    assert (code, err) == (0, "")
    found = json.loads(out, parse_constant=constant)
    assert found["model"] == "tiny"
    [weight] = found["super_weights"]
    assert (weight["layer"], weight["row"], weight["column"]) == (1, 97, 301)
    assert weight["value"] == pytest.approx(2.625)
    assert found["verified"]["zeroed"] > 100 * found["verified"]["perplexity"]
    assert 0.9 < found["verified"]["strongest_other"]["ratio"] < 2


@pytest.mark.slow
def test_none_found_is_an_answer(run, tmp_path):
    """A model without super weights gets an empty list, a reason in words, and exit code 0."""
    folder = checkpoints.micro(tmp_path / "micro")
    code, out, _ = run("locate", folder, "--json", "--verify")
    found = json.loads(out)
    assert (code, found["super_weights"]) == (0, [])
    assert found["reason"].startswith("none found: ")
    code, out, _ = run("locate", folder, "--verify")
    assert code == 0
    assert out.splitlines()[-2].endswith("nothing to zero")
    assert out.splitlines()[-1].startswith("strongest scalar, though no super weight: layer ")


@pytest.mark.slow
def test_none_found_can_be_an_exit_code(run, tmp_path):
    """With --exit-code a script sees without reading whether a model has super weights."""
    folder = checkpoints.micro(tmp_path / "micro")
    assert run("locate", folder, "--exit-code", "--json")[0] == 1
    assert run("locate", "tiny", "--exit-code", "--json")[0] == 0


def test_what_libraries_print_stays_off_stdout(run, monkeypatch):
    """A library that warns, logs and prints while a model is loaded spoils no JSON."""
    from swcheck.loading import engines

    load = engines.load

    def loud(*arguments, **options):
        print("hello from a library")
        warnings.warn("a warning", UserWarning, stacklevel=1)
        return load(*arguments, **options)

    monkeypatch.setattr(engines, "load", loud)
    with pytest.warns(UserWarning, match="a warning"):
        code, out, err = run("locate", "tiny", "--json")
    assert code == 0
    assert json.loads(out)["model"] == "tiny"
    assert err == "hello from a library\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["locate", "llma-7b"], "model 'llma-7b'"),
        (["locate", ""], "the name of a model"),
        (["locate", "./nowhere", "--json"], "no such path"),
        (["locate", "nobody:int8"], "engine 'nobody'"),
        (["locate", "tiny", "--dtype=float7"], "dtype 'float7'"),
        (["locate", "tiny", "--device=cuda:99"], "device 'cuda:99'"),
        (["locate", "llama-7b", "--offline", "--json"], "hf download huggyllama/llama-7b"),
        (["index", "nobody"], "'nobody'"),
        (["index", "", "--json"], "an empty name"),
    ],
)
def test_wrong_use(run, words, said):
    """What leads nowhere is worded on stderr, exit code 2, and stdout stays empty."""
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("swcheck: ")
    assert said in err
    assert "\n  found: " in err
    assert "\n  try: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [[], ["nothing"], ["locate"], ["locate", "tiny", "--nothing"]])
def test_wrong_words(run, words):
    """A command line that cannot be parsed shows its usage on stderr, exit code 2."""
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "usage: swcheck" in err


def test_a_damaged_model(run, tmp_path):
    """A model with NaN is said to have it, exit code 2."""
    code, out, err = run("locate", checkpoints.damaged(tmp_path / "nan", damage.poison), "--json")
    assert (code, out) == (2, "")
    assert "NaN" in err


def test_index(run):
    """The published coordinates of one model, or a line or more of each."""
    code, out, err = run("index", "llama-7b")
    assert (code, err) == (0, "")
    assert "layer 2 [3968, 7003]" in out
    code, out, _ = run("index")
    assert out.count("\nhuggyllama/") >= 2
    assert code == 0


@pytest.mark.parametrize("words", [["index", "--json"], ["index", "Llama-7B", "--json"]])
def test_index_as_json(run, words):
    """A list of entries, numbers that are not finite as words."""
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    entries = json.loads(out, parse_constant=constant)
    assert entries[0]["model"] == "huggyllama/llama-7b"
    assert (len(entries) == 1) == (len(words) == 3)


def test_help_says_where_the_documentation_lies(run, monkeypatch, tmp_path):
    """A clone has the pages beside the package, the wheel brings them along; where there is neither, nothing is said."""
    monkeypatch.setenv("COLUMNS", "300")
    assert f"Documentation: {ROOT / 'docs'}" in run("--help")[1]
    installed = tmp_path / "share" / "doc" / "swcheck"
    installed.mkdir(parents=True)
    (installed / "super-weights.md").touch()
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setattr(command_line, "__file__", str(tmp_path / "a" / "b" / "c" / "main.py"))
    assert documentation() == installed
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert tmp_path / shared["docs"] == installed
    monkeypatch.setattr("sys.prefix", str(tmp_path / "elsewhere"))
    assert documentation() is None
    assert "Documentation" not in run("--help")[1]


def test_help_and_version(run):
    """--help names both commands, --version the version; exit code 0."""
    code, out, _ = run("--help")
    assert code == 0
    assert "locate" in out
    assert "index" in out
    code, out, _ = run("--version")
    assert (code, out.split()[0]) == (0, "swcheck")


def test_the_index_needs_no_torch_and_no_reader_to_the_end():
    """``swcheck index`` imports nothing heavy, and a reader that has seen enough is no error to speak of."""
    program = (
        "import sys\nfrom swcheck.run.command_line.main import main\ncode = main(['index'])\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\nraise SystemExit(code)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


PRESSED = """
import signal, sys

class Pressed:
    def find_spec(self, name, *_more):
        if name == module:
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
module, sys.argv = sys.argv[1], ["swcheck", *sys.argv[2:]]
sys.meta_path.insert(0, Pressed())
from swcheck.__main__ import main
sys.exit(main())
"""
"""Presses Ctrl-C when a module is imported."""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("swcheck.run.command_line.common.arguments", "index"),
        ("swcheck.loading.published_index", "index"),
        ("torch", "locate tiny"),
        ("torch", "study tiny"),
        ("torch", "accuracy tiny"),
        ("torch", "plot tiny"),
        ("swcheck.run.preflight", "preflight tiny --scheme=rtn:bits=4"),
    ],
)
def test_ctrl_c_ends_every_subcommand_with_2(module, words):
    """At any moment, from the first import on, Ctrl-C ends the command with 2, in words and without a traceback."""
    command = [sys.executable, "-c", PRESSED, module, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "swcheck: interrupted\n")


def test_a_file_that_cannot_be_written_is_named(run, monkeypatch, tmp_path):
    """A disk that is full after the work ends with 2 and the name of the file, without a traceback; other errors of
    the system keep theirs."""

    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    def other(*_arguments, **_options):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("swcheck.base.output_files.os.fdopen", full)
    monkeypatch.setattr("swcheck.loading.published_index.entries", lambda *_: write_atomically(tmp_path / "out", "x"))
    assert run("index") == (2, "", f"swcheck: {tmp_path / 'out'}: No space left on device\n")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("swcheck.loading.published_index.entries", full)
    assert run("index") == (2, "", "swcheck: a temporary file: No space left on device\n")
    monkeypatch.setattr("swcheck.loading.published_index.entries", other)
    with pytest.raises(OSError, match="Invalid argument"):
        run("index")


def test_an_answer_fits_the_terminal_it_goes_to():
    """Long lines are folded under where they begin, on a terminal only; short ones and tables stay as they are."""
    lines = ["tiny: " + "word " * 30, "  layer 1 [97, 301] = +2.625: " + "word " * 30, "  0      -12.77 @ 7, 225"]
    assert layout.wrap_lines(lines, None) == lines
    fitted = layout.wrap_lines(lines, 80)
    assert len(fitted) > len(lines)
    assert max(map(len, fitted)) <= 80
    assert fitted[-1] == lines[-1]
    assert fitted[1].startswith("  word")
    assert fitted[-2].startswith("    word")


def test_shells_can_complete(run, monkeypatch):
    """The script for bash knows the subcommands and their options; without the library the extra is named."""
    pytest.importorskip("shtab")
    code, out, _ = run("--completion", "bash")
    assert code == 0
    assert "--candidate" in out
    assert "locate" in out
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, _, err = run("--completion", "bash")
    assert code == 2
    assert "swcheck[completion]" in err


@pytest.mark.slow
def test_published_coordinates_are_verified(run, tmp_path):
    """Of a model that nothing is published of, that is an error in words."""
    code, out, err = run("locate", checkpoints.micro(tmp_path / "micro"), "--published")
    assert (code, out) == (2, "")
    assert "published super weights of micro\n  found: none" in err
