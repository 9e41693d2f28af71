"""The engines: routing of names, discovery without imports, and wiring refused with the culprit named."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest
import torch

import swcheck
from swcheck.base.errors import ArchitectureError, CheckpointError, EngineError, OptionError, UnknownModelError
from swcheck.base.records import Loaded
from swcheck.loading import engines, tiny
from swcheck.loading.engine_request import read_request
from tests import checkpoints


def words_of(caught) -> tuple[str, str, str]:
    """What was asked, found, and is to be tried; each said, and in the message."""
    error = caught.value
    assert error.asked
    assert error.found
    assert str(error).startswith(f"{error.asked}\n  found: {error.found}")
    return error.asked, error.found, error.attempt


@pytest.mark.parametrize(
    ("spec", "goes_to"),
    [
        ("tiny", ("huggingface", "tiny")),
        ("llama-7b", ("huggingface", "llama-7b")),
        ("owner/name", ("huggingface", "owner/name")),
        ("./a:b", ("huggingface", "./a:b")),
        ("/a/b:c", ("huggingface", "/a/b:c")),
        ("~/a:b", ("huggingface", "~/a:b")),
        ("owner/name:main", ("huggingface", "owner/name:main")),
        ("C:\\models", ("huggingface", "C:\\models")),
        ("huggingface:tiny", ("huggingface", "tiny")),
        ("torchao:int8-weight-only", ("torchao", "int8-weight-only")),
        ("engine:", ("engine", "")),
        ("rtn:4:block", ("rtn", "4:block")),
    ],
)
def test_a_colon_after_a_plain_word_is_an_engine(spec, goes_to):
    """``name:scheme`` goes to an engine; paths, hub ids and drive letters with a colon do not."""
    assert engines.route(spec) == goes_to


def test_an_existing_path_with_a_colon_is_a_path(tmp_path, monkeypatch):
    """A directory whose name has a colon is a directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    assert engines.route("a:b") == ("huggingface", "a:b")


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("", "an empty value"),
        (" ", "an empty value"),
        ("~\0", "a NUL byte"),
        ("a\0:b", "a NUL byte"),
        (None, "NoneType"),
        (3, "int"),
    ],
)
def test_a_spec_that_is_no_name(spec, found):
    """An empty name, or one that is no text, is refused."""
    with pytest.raises(OptionError, match="the name of a model") as caught:
        swcheck.load(spec)
    assert words_of(caught)[1] == found


def test_a_path_and_a_dtype_of_torch_are_understood():
    """What scripts have at hand: a ``Path`` for a directory, torch's own dtype for its name."""
    loaded = swcheck.load(tiny.CHECKPOINT, dtype=torch.float16)
    assert loaded.model.dtype is torch.float16


def test_an_engine_that_is_not_installed():
    """An unknown engine is refused with the installed ones, the closest one, and what would bring it."""
    with pytest.raises(EngineError, match="engine 'hugingface'") as caught:
        swcheck.load("hugingface:tiny")
    _, found, attempt = words_of(caught)
    assert "installed: huggingface" in found
    assert "the closest: huggingface" in found
    assert "swcheck-hugingface" in attempt


@dataclass(frozen=True)
class Homemade:
    """A third party's engine: the name, and a load that remembers what it was asked for."""

    name: str = "homemade"
    offline: bool = False

    def load(self, spec, *, reference, device, dtype):
        return Loaded(torch.nn.Linear(1, 1), (self.offline, reference, device, dtype), f"homemade {spec}")


HOMEMADE = Homemade()


class WithoutDtype:
    name = "homemade"

    def load(self, spec, *, reference, device):
        return spec, reference, device


class Plain(WithoutDtype):
    """An engine that is no dataclass."""

    def load(self, spec, *, reference, device, dtype):
        return Loaded(None, (reference, device, dtype), spec)


PLAIN = Plain()
WITHOUT_DTYPE = WithoutDtype()
MISNAMED = Homemade("another")
NOT_AN_ENGINE = 3


def installing(monkeypatch, value, name="homemade"):
    """Let the registry have an engine of that name, at that place, beside the built-in one."""
    points = (
        EntryPoint(name, value, engines.ENTRY_POINT_GROUP),
        EntryPoint("huggingface", "swcheck.loading.huggingface:ENGINE", engines.ENTRY_POINT_GROUP),
    )
    monkeypatch.setattr(engines, "entry_points", lambda group: points if group == engines.ENTRY_POINT_GROUP else ())


def test_a_third_partys_engine_is_loaded_by_its_name(monkeypatch):
    """An engine found by its entry point gets the scheme, reference, device and dtype, and the wishes it has fields for."""
    installing(monkeypatch, "tests.loading.test_engines:HOMEMADE")
    loaded = swcheck.load("homemade:int4:block", reference="tiny", device="cpu", dtype="float16", offline=True)
    assert loaded.name == "homemade int4:block"
    assert loaded.tokenizer == (True, "tiny", "cpu", "float16")
    assert engines.name_of("homemade:int4") == engines.canonical_name("homemade:int4") == "homemade:int4"
    engines.check("homemade:int4")
    engines.download("homemade:int4")


def test_an_engine_need_not_know_every_wish(monkeypatch):
    """An engine without fields is asked for its scheme all the same."""
    installing(monkeypatch, "tests.loading.test_engines:PLAIN")
    assert swcheck.load("homemade:a", trust_remote_code=True, offline=True).name == "a"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("tests.loading.test_engines:WITHOUT_DTYPE", "load() lacks dtype"),
        ("tests.loading.test_engines:MISNAMED", "its name is 'another'"),
        ("tests.loading.test_engines:NOT_AN_ENGINE", "load() lacks spec, reference, device, dtype"),
        ("tests.loading.test_engines:NOTHING", "cannot be imported"),
        ("tests.no_such_module:ENGINE", "cannot be imported"),
    ],
)
def test_wrong_wiring_is_refused_with_the_culprit(monkeypatch, value, said):
    """An engine that cannot be imported, or does not keep the contract, is refused, and the place of it named."""
    installing(monkeypatch, value)
    with pytest.raises(EngineError, match="engine 'homemade'") as caught:
        engines.import_engine("homemade")
    _, found, _ = words_of(caught)
    assert found.startswith(f"{value} of an unknown distribution")
    assert said in found


def test_a_broken_engine_disturbs_nobody(monkeypatch):
    """As long as it is not asked for, an engine that cannot be imported is only a name."""
    installing(monkeypatch, "tests.no_such_module:ENGINE")
    assert list(engines.installed_engines()) == ["homemade", "huggingface"]
    assert engines.import_engine("huggingface").name == "huggingface"
    engines.check("tiny")


def test_the_built_in_one_is_registered_like_any_other():
    """The loader of directories is found by its entry point, and keeps the contract."""
    assert engines.installed_engines()["huggingface"].value == "swcheck.loading.huggingface:ENGINE"
    assert engines.import_engine("huggingface").name == "huggingface"


@pytest.mark.parametrize(
    ("dtype", "device", "said"), [("float7", None, "dtype 'float7'"), (None, "cuda:99", "device 'cuda:99'")]
)
def test_a_dtype_or_device_is_checked_before_the_model(dtype, device, said):
    """A wrong dtype or device is refused even before a model that does not exist."""
    with pytest.raises(OptionError, match=said) as caught:
        swcheck.load("./nowhere", dtype=dtype, device=device)
    assert words_of(caught)


def test_check_needs_no_torch():
    """Names, directories and offline caches are judged in a process that imports neither torch nor transformers."""
    program = """
import sys
from swcheck.loading import engines
from swcheck.base.errors import SwcheckError
for spec in ("tiny", "llama-7b", "./nowhere", "a:b", sys.argv[1]):
    try:
        engines.check(spec, offline=True)
    except SwcheckError as error:
        print(spec, error.found)
assert not {"torch", "transformers", "numpy"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(checkpoints.tiny.CHECKPOINT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["llama-7b", "./nowhere", "a:b"]


def test_errors_have_built_in_parents(tmp_path):
    """Whoever knows nothing of swcheck can still catch a name that leads nowhere, or a folder that is no model."""
    with pytest.raises(LookupError):
        swcheck.load("./nowhere")
    with pytest.raises(ValueError, match="config.json"):
        swcheck.load(str(tmp_path))
    with pytest.raises(TypeError, match="encoder"):
        swcheck.load(str(checkpoints.copy_of_tiny(tmp_path / "t5", checkpoints.t5)))
    with pytest.raises(PermissionError, match="pickle"):
        edits = (checkpoints.without("model.safetensors"), checkpoints.pickled)
        swcheck.load(str(checkpoints.copy_of_tiny(tmp_path / "pickled", *edits)))
    assert issubclass(UnknownModelError, LookupError)
    assert issubclass(CheckpointError, ValueError)
    assert issubclass(ArchitectureError, TypeError)


@dataclass(frozen=True)
class Claiming(Homemade):
    """An engine that says what is its own."""

    def claims(self, path):
        return path.suffix == ".homemade"


CLAIMING = Claiming()


def test_a_path_that_an_engine_claims_needs_no_prefix(monkeypatch, tmp_path):
    """The engine is asked for the path as it was typed, and it goes by the name of the file; other paths are not its."""
    installing(monkeypatch, "tests.loading.test_engines:CLAIMING")
    file = tmp_path / "mine.homemade"
    file.touch()
    assert engines.route(str(file)) == ("homemade", str(file))
    assert swcheck.load(str(file)).name == f"homemade {file}"
    assert engines.name_of(str(file)) == "mine.homemade"
    assert engines.canonical_name(f"{tmp_path}/../{tmp_path.name}/mine.homemade") == str(file)
    engines.check(str(file))
    assert engines.route(str(tmp_path)) == ("huggingface", str(tmp_path))
    assert engines.route("tiny") == ("huggingface", "tiny")


def test_two_engines_that_claim_one_path(monkeypatch, tmp_path):
    """A path that two engines claim wants a prefix; a broken engine claims nothing."""
    file = tmp_path / "mine.homemade"
    file.touch()
    monkeypatch.setattr(engines, "installed_engines", lambda: dict.fromkeys(["broken", "huggingface", "one", "two"]))
    monkeypatch.setattr(engines, "import_engine", lambda name: {"one": CLAIMING, "two": CLAIMING}[name])
    with pytest.raises(EngineError, match="an engine for") as caught:
        engines.route(str(file))
    assert words_of(caught)[1:] == ("claimed by one, two", f"name one: one:{file}")


@pytest.mark.parametrize(
    ("name", "line"), [("a/adapter_config.json", "pip install swcheck-peft"), ("a.gguf", "pip install swcheck-gguf")]
)
def test_a_path_that_no_installed_engine_claims(tmp_path, monkeypatch, name, line):
    """An adapter and a GGUF file are refused with the line that installs their engine, before anything is loaded."""
    installing(monkeypatch, "tests.loading.test_engines:HOMEMADE")
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("{}")
    spec = str(file.parent if file.suffix == ".json" else file)
    for refuse in (engines.check, swcheck.load):
        with pytest.raises(EngineError, match="a model in") as caught:
            refuse(spec)
        assert words_of(caught)[2] == line


@pytest.mark.parametrize(
    ("make", "found"), [(os.mkdir, "a directory that is named like a file"), (os.mkfifo, "a named pipe")]
)
@pytest.mark.parametrize("name", ["a/adapter_config.json", "a.gguf"])
def test_what_is_named_like_a_file_and_is_none(tmp_path, name, make, found):
    """It is said what it is; no engine would read it."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    make(path)
    for refuse in (engines.check, swcheck.load):
        with pytest.raises(CheckpointError, match=path.suffix) as caught:
            refuse(str(path.parent if path.suffix == ".json" else path))
        assert words_of(caught)[1] == found


def test_tensor_parallelism_needs_torchrun_and_an_engine_that_knows_it(monkeypatch):
    """A second answer to where a model is, an engine without the field, and a process that torchrun did not start."""
    with pytest.raises(OptionError, match="tensor parallel with a device map of auto") as caught:
        swcheck.load("tiny", tensor_parallel=True, device_map="auto")
    assert words_of(caught)[1] == "two answers to where a model is"
    with pytest.raises(OptionError, match="tensor parallel") as caught:
        swcheck.load("tiny", tensor_parallel=True)
    assert words_of(caught)[1] == "torchrun has not started this process"
    assert words_of(caught)[2].startswith("torchrun --nproc-per-node=2 -m pytest")
    installing(monkeypatch, "tests.loading.test_engines:HOMEMADE")
    for refuse in (
        lambda: swcheck.load("homemade:int4", tensor_parallel=True),
        lambda: engines.check_tensor_parallel("homemade:int4"),
    ):
        with pytest.raises(EngineError, match="engine 'homemade'") as caught:
            refuse()
        assert words_of(caught)[1] == "it cannot share a model among the processes of torchrun"


def test_one_process_of_torchrun_loads_a_whole_model(monkeypatch):
    """There is nobody to share it with: the option is not refused, and nothing is joined."""
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    model = swcheck.load("tiny", tensor_parallel=True).model
    assert all(type(one.data) is torch.Tensor for one in model.parameters())
    assert not torch.distributed.is_initialized()


def test_a_device_map_needs_accelerate_and_an_engine_that_knows_it(monkeypatch):
    """An unknown map, a missing package and an engine without the field are errors in words."""
    with pytest.raises(OptionError, match="device map 'everywhere'") as caught:
        swcheck.load("tiny", device_map="everywhere")
    assert "auto, balanced" in words_of(caught)[1]
    monkeypatch.setattr(engines, "find_spec", lambda _name: None)
    with pytest.raises(EngineError, match="device map 'auto'") as caught:
        swcheck.load("tiny", device_map="auto")
    assert words_of(caught)[1:] == ("accelerate is not installed", "pip install 'swcheck[device-map]'")
    monkeypatch.setattr(engines, "find_spec", lambda _name: True)
    installing(monkeypatch, "tests.loading.test_engines:HOMEMADE")
    with pytest.raises(EngineError, match="engine 'homemade'") as caught:
        swcheck.load("homemade:int4", device_map="auto")
    assert words_of(caught)[1] == "it cannot spread a model over devices"


# --- asked before it loads ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked(Homemade):
    """An engine that can be asked: it knows one scheme, and breaks down over another."""

    def check(self, spec):
        if spec == "broken":
            raise KeyError(spec)
        return read_request(self.name, spec, ["int4"], packages=[("no_such_module", "no-such-module>=1")])


@dataclass(frozen=True)
class Needy(Homemade):
    """An engine that imports what is not here."""

    def load(self, spec, *, reference, device, dtype):
        import no_such_module  # noqa: F401


ASKED = Asked()
NEEDY = Needy()


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("int5", ("scheme 'int5' of homemade", "known: int4", "homemade:int4")),
        ("int4", ("homemade:int4", "not installed: no_such_module", "pip install 'no-such-module>=1'")),
        ("broken", ("homemade:broken", "its check() fails: KeyError: 'broken'", "repair or remove that engine")),
    ],
)
def test_an_engine_that_can_be_asked_is(monkeypatch, scheme, said):
    """What it cannot make, and what it needs and is not here, is said before anything is loaded, and in words."""
    installing(monkeypatch, "tests.loading.test_engines:ASKED")
    with pytest.raises(EngineError) as caught:
        engines.check(f"homemade:{scheme}")
    assert words_of(caught) == said


def test_a_package_that_is_missing_in_a_load_is_said_in_words(monkeypatch):
    """An engine need not catch its own ImportError."""
    installing(monkeypatch, "tests.loading.test_engines:NEEDY")
    with pytest.raises(EngineError) as caught:
        swcheck.load("homemade:int4", reference="tiny")
    asked, found, _ = words_of(caught)
    assert (asked, found) == ("homemade:int4", "a package that it needs: No module named 'no_such_module'")


@pytest.mark.parametrize(
    ("says", "words"), [(None, "an engine's name, without a scheme"), (OptionError("scheme ''", "known: a, b"), "a, b")]
)
def test_an_engine_without_a_scheme_is_no_unknown_model(monkeypatch, says, words):
    """Whoever types its bare name is shown its schemes, if it tells them, and no list of models."""

    def ask(_engine, _scheme):
        if says:
            raise says

    monkeypatch.setattr(engines, "check_scheme", ask)
    with pytest.raises(OptionError if says else EngineError, match=words):
        engines.check("rtn")
