"""What the fuzzer found interesting, and the faults that it found once, read again without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.reliability import fuzz
from tools.reliability.readers import READERS, judged

CORPUS = Path(__file__).parents[1] / "corpus"


@pytest.mark.parametrize("name", READERS)
def test_every_kept_input_is_read_or_refused(name):
    """No file of the corpus ends a reader otherwise than in an answer or in words."""
    for file in sorted((CORPUS / name).glob("*")):
        judged(READERS[name], file.read_bytes())


@pytest.mark.parametrize("name", READERS)
def test_good_content_is_accepted(name):
    """Each reader takes what it is made for, so that the fuzzer begins behind its first refusal."""
    for data in READERS[name].good:
        READERS[name].read(data)


def test_every_reader_is_fuzzed():
    """The command knows the readers by name without importing them."""
    assert tuple(READERS) == fuzz.NAMES
