"""What is asked of a quantizer: read strictly, refused in words, and without importing anything."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

import swcheck
from swcheck.base.errors import EngineError, OptionError
from swcheck.loading.engine_request import EngineRequest, check_packages, read_request

SCHEMES = ("int8", "int4")


def asked(spec, **more):
    return read_request("toy", spec, SCHEMES, options=("group", "format"), **more)


def test_the_parts():
    """Scheme, options and names, wherever ``skip=`` stands; what was typed is kept as the title."""
    found = asked("int4,skip=a+b,group=32,format=x")

    assert found == EngineRequest(
        "toy", "int4,skip=a+b,group=32,format=x", "int4", {"group": "32", "format": "x"}, ("a", "b")
    )
    assert found.title == "toy:int4,skip=a+b,group=32,format=x"
    assert (found.group_size(128), asked("int8").group_size(128)) == (32, 128)


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("int5", EngineError, ("scheme 'int5' of toy", "known: int8, int4", "toy:int8")),
        ("", EngineError, ("scheme '' of toy", "known: int8, int4", "toy:int")),
        ("int4,grp=32", OptionError, ("'grp=32' in toy:int4,grp=32", "options here: group=..., format=..., skip=...", "")),
        ("int4,group", OptionError, ("'group' in toy:int4,group", "options here", "")),
        ("int4,group=1,group=2", OptionError, ("toy:int4,group=1,group=2", "an option is given twice", "")),
        ("int4,skip=", OptionError, ("toy:int4,skip=", "skip= without a module's name", "skip=model.layers")),
        ("int4,skip=a++b", OptionError, ("toy:int4,skip=a++b", "skip= without a module's name", "")),
        ("int4,skip", OptionError, ("toy:int4,skip", "skip= without a module's name", "")),
    ],
)  # fmt: skip
def test_what_makes_no_sense(spec, kind, words):
    """Each has its own sentence, with what is known."""
    with pytest.raises(kind) as caught:
        asked(spec)

    error = caught.value
    assert error.asked == words[0]
    assert error.found.startswith(words[1])
    assert words[2] in error.attempt


@pytest.mark.parametrize("group", ["", "x", "0", "-8", "65", "\u00b2"])
def test_a_group_that_makes_no_sense(group):
    """A group is a positive multiple of what the quantizer packs at a time."""
    with pytest.raises(OptionError, match=r"a multiple of 8: toy:int4,group=64"):
        asked(f"int4,group={group}").group_size(64, multiple=8)


def test_a_package_that_is_not_here():
    """The line installs what is missing and nothing else, and nothing is imported to find out."""
    with pytest.raises(EngineError) as caught:
        asked("int4", packages=[("json", "json"), ("no_such_module", "no-such-module>=1,<2"), ("json.no", "also")])

    assert caught.value.found == "not installed: no_such_module, json.no"
    assert caught.value.attempt == "pip install 'no-such-module>=1,<2' also"
    check_packages("toy", [("this", "this")])  # its zen would be printed
    assert "this" not in sys.modules


def test_a_base_is_fresh_and_has_the_engine_s_leave():
    """The reference is loaded as any model is; without one there is nothing to work on."""
    engine = SimpleNamespace(trust_remote_code=True)
    base = asked("int4").load_reference("tiny", engine, device="cpu", dtype="bfloat16")

    assert (base.name, str(base.model.dtype)) == ("tiny", "torch.bfloat16")
    assert asked("int4,skip=model.layers.1.mlp").modules_to_skip(base.model) == tuple(
        f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")
    )
    with pytest.raises(OptionError, match="no reference"):
        asked("int4").load_reference(None, engine, device="cpu", dtype=None)
    with pytest.raises(EngineError, match="no linear map in this model is 'a'"):
        asked("int4,skip=a").modules_to_skip(base.model)


def test_rtn_reads_skip_as_strictly():
    """The built-in engine as well, asked or loading."""
    for refuse in (swcheck.quantizers.rtn.ENGINE.check, lambda spec: swcheck.load(f"rtn:{spec}", reference="tiny")):
        with pytest.raises(OptionError, match=r"rtn:bits=4,skip=\n  found: skip= without a module's name"):
            refuse("bits=4,skip=")
