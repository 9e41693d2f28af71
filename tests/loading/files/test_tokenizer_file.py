"""A tokenizer that multiplies texts is refused before it is loaded; one that cannot encode is an error in words."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swcheck.base.errors import CheckpointError
from swcheck.loading.files.tokenizer_file import MOST_GROWTH, check_tokenizer
from swcheck.loading.huggingface import tokenizer_of
from swcheck.loading.tiny import CHECKPOINT
from tests import hostile
from tests.versions import NOT_NEWER, RECENT

TINY = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
SMALL = {**TINY, "model": {**TINY["model"], "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]}}
ENCODED_BY_WORDS = {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"<s>": 0}}


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


def template(pieces, ids):
    special = {"<s>": {"id": "<s>", "ids": [0] * ids, "tokens": ["<s>"] * ids}}
    return {"type": "TemplateProcessing", "single": [{"SpecialToken": {}}] * pieces, "special_tokens": special}


@pytest.fixture
def folder(tmp_path):
    """A directory whose tokenizer is ``SMALL`` with these parts; the other files are those of tiny."""

    def write(**changes):
        for name in ("config.json", "tokenizer_config.json"):
            (tmp_path / name).write_bytes((CHECKPOINT / name).read_bytes())
        (tmp_path / "tokenizer.json").write_text(json.dumps({**SMALL, **changes}), encoding="utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalizer": sequence({"type": "Prepend", "prepend": "_"}, replace({"String": " "}, "_"))},
        {"normalizer": replace({"String": "a"}, "b" * MOST_GROWTH)},
        {"normalizer": replace({"String": "aa"}, "b" * MOST_GROWTH * 2)},
        {"normalizer": sequence(replace({"Regex": "a+"}, "b" * 8), replace({"String": "b"}, "c" * 8))},
        {"post_processor": template(MOST_GROWTH, 1)},
        {"normalizer": sequence(*[{"type": "NFC"}] * 7, *[None] * 7)},
    ],
)
def test_what_published_files_do_is_accepted(folder, changes):
    """Steps that replace, put before and after, up to the bound itself."""
    check_tokenizer(folder(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"normalizer": replace({"String": "a"}, "b" * (MOST_GROWTH + 1))}, "its normalizer makes texts 65 times as long"),
        ({"normalizer": replace({"String": ""}, "b" * 100)}, "100 times"),
        ({"normalizer": {"pattern": {"Regex": "aaaa"}, "content": "b" * 100}}, "100 times"),
        ({"normalizer": {"content": "b" * 100}}, "100 times"),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 65}}, "65 times"),
        ({"normalizer": sequence(*[replace({"String": "a"}, "aa")] * 7)}, "128 times"),
        ({"normalizer": sequence(*[sequence(*[replace({"String": "a"}, "aa")] * 100)] * 99)}, "inf times|e.2980? times"),
        ({"decoder": {"decoders": [replace({"String": "a"}, "b" * 100)]}}, "its decoder makes texts 100 times"),
        ({"post_processor": template(33, 2)}, "its post_processor makes texts 66 times"),
        ({"post_processor": {"processors": [template(1, 65)]}}, "65 times"),
    ],
)  # fmt: skip
def test_what_multiplies_a_text_is_refused(folder, changes, said):
    """Alone or in turn, with or without the name of its type; nothing is loaded."""
    with pytest.raises(CheckpointError, match=said):
        check_tokenizer(folder(**changes))


@pytest.mark.parametrize("merges", [[["a", "##b"], ["a", "b"]], ["a ##b", "a b"]])
def test_merges_without_the_prefix_of_their_model_are_refused(folder, merges):
    """The package cuts it off unseen, and a word that is shorter ends the process."""
    model = {**SMALL["model"], "continuing_subword_prefix": "##", "merges": merges}
    with pytest.raises(CheckpointError, match="the merge 'b' continues a word without its continuing_subword_prefix"):
        check_tokenizer(folder(model=model))


def test_merges_with_the_prefix_of_their_model_are_accepted(folder):
    """As of a tokenizer that was trained with one."""
    model = {
        "vocab": {"<s>": 0, "a": 1, "##b": 2, "ab": 3},
        "merges": [["a", "##b"]],
        "continuing_subword_prefix": "##",
    }
    assert tokenizer_of(folder(model={**SMALL["model"], **model}), trusted=False)("ab")["input_ids"][-1] == 3


def test_what_is_no_tokenizer_is_refused(tmp_path):
    """Another JSON value, steps in steps without end, a file of gigabytes; a directory without the file is left alone."""
    check_tokenizer(tmp_path)
    deep = '{"normalizers": [' * 9000 + "]}" * 9000
    for text, said in (("[1]", "no JSON object"), (f'{{"normalizer": {deep}}}', "recursion")):
        (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=said):
            check_tokenizer(tmp_path)
    os.truncate(tmp_path / "tokenizer.json", 2**28 + 1)
    with pytest.raises(CheckpointError, match="268,435,457 bytes, at most 268,435,456 are read"):
        check_tokenizer(tmp_path)


@given(part=hostile.damaged(sequence(replace({"String": "a"}, "b"), {"prepend": "c"})), name=st.sampled_from(["normalizer", "post_processor", "decoder"]))  # fmt: skip
def test_any_part_is_read_or_refused(tmp_path_factory, part, name):
    """No value in a place that is read ends otherwise than in an answer or in words."""
    folder = tmp_path_factory.mktemp("any")
    (folder / "tokenizer.json").write_text(json.dumps({name: part}), encoding="utf-8")
    try:
        check_tokenizer(folder)
    except CheckpointError:
        return


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": ENCODED_BY_WORDS}, "Missing .UNK. token"),
        pytest.param(
            {"model": {**SMALL["model"], "vocab": dict.fromkeys(SMALL["model"]["vocab"], 0)}},
            "a fault in a package",
            marks=[RECENT, NOT_NEWER],
        ),
        ({"added_tokens": 3}, "TypeError"),
    ],
)
def test_a_tokenizer_that_cannot_encode_is_an_error_in_words(folder, changes, said, capfd):
    """Also where the package panics in Rust, which is no Exception of Python."""
    with pytest.raises(CheckpointError, match=said):
        tokenizer_of(folder(**changes), trusted=False)
    capfd.readouterr()  # Rust writes of its panic itself
