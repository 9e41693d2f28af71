"""The text that ``tiny`` is trained on: which files it takes, and which it holds out."""

from __future__ import annotations

import hashlib

import pytest

from swcheck.loading.tiny import HELDOUT
from tools import tiny_corpus
from tools.tiny_corpus import HELDOUT_SHARE, digest, is_heldout

TAKEN = [f"module{number}.py" for number in range(40)] + ["json/tool.py", "a/b/c.py", "testing.py"]
LEFT_OUT = [
    "test/test_a.py", "json/tests/a.py", "site-packages/a.py", "dist-packages/a/b.py", "pydoc_data/topics.py",
    "encodings/utf_8.py", "idlelib/idle_test/a.py", "a/__pycache__/a.py", "_sysconfigdata_linux.py", "notes.txt",
]  # fmt: skip


@pytest.fixture
def library(tmp_path):
    """A standard library in which each file holds its own name."""
    for name in (*TAKEN, *LEFT_OUT):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n", encoding="utf-8")
    return tmp_path


def test_files(library):
    """Every Python file is in exactly one of the two texts, but tests, tables, prose and foreign packages in none."""
    read = tiny_corpus.read(library)
    assert sorted((*read.train_files, *read.heldout_files)) == sorted(TAKEN)
    assert all(map(is_heldout, read.heldout_files))
    assert not any(map(is_heldout, read.train_files))
    assert read.heldout_files


def test_texts(library):
    """A text is its files in alphabetical order, whole."""
    read = tiny_corpus.read(library)
    for text, files in ((read.train, read.train_files), (read.heldout, read.heldout_files)):
        assert list(files) == sorted(files)
        assert text == "\n".join(f"# {name}\n" for name in files)


def test_bytes_that_are_no_text(library):
    """A file that is not UTF-8 is read all the same."""
    (library / "module0.py").write_bytes(b"# \xff\n")
    read = tiny_corpus.read(library)
    assert "# \N{REPLACEMENT CHARACTER}\n" in read.train + read.heldout


def test_the_share_held_out():
    """About one file in 24 is held out."""
    names = [f"package{number}/module.py" for number in range(5000)]
    assert sum(map(is_heldout, names)) / len(names) == pytest.approx(HELDOUT_SHARE, rel=0.25)


def test_held_out_by_name_only():
    """A name is held out or not on every machine alike."""
    assert [name for name in TAKEN if is_heldout(name)] == ["module4.py"]


@pytest.mark.slow
def test_this_library():
    """This interpreter's own library has text for both, and no word of the training text's files is held out."""
    read = tiny_corpus.read()
    assert len(read.train) > 10 * len(read.heldout) > 10**5
    assert not set(read.train_files) & set(read.heldout_files)


def test_digest():
    """A text is named by the SHA-256 of its UTF-8 bytes."""
    assert digest("é") == hashlib.sha256("é".encode()).hexdigest()


def test_the_shipped_text():
    """The held-out text that is shipped is source code of some length."""
    text = HELDOUT.read_text(encoding="utf-8")
    assert text.count("    def ") + text.count("\ndef ") > 100
    assert len(text) > 10**5
