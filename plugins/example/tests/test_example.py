"""The engine to copy passes the shared check, and it is as short as it is said to be."""

from pathlib import Path

import swcheck_example

from swcheck import check_engine


def test_conformance():
    """swcheck sees inside what this engine makes."""
    (reading,) = check_engine("example", ["int8"])
    assert reading.skip == "kept"


def test_thirty_lines():
    """Docstring, imports and all."""
    assert len(Path(swcheck_example.__file__).read_text(encoding="utf-8").splitlines()) <= 31
