"""Errors and optional imports."""

import sys

import pytest

from collie import interfaces
from collie.events import EventWriter, Log, NullWriter
from collie.interfaces import (
    CheckpointError,
    CollieError,
    ConfigError,
    DataError,
    EventSink,
    MissingExtraError,
    NonFiniteError,
    ParallelSizeError,
    UnknownFieldError,
    nearest,
    require,
)


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (ConfigError, (CollieError, ValueError)),
        (UnknownFieldError, (ConfigError, AttributeError)),
        (ParallelSizeError, (ConfigError,)),
        (CheckpointError, (CollieError, ValueError)),
        (DataError, (CollieError, ValueError)),
        (MissingExtraError, (CollieError, ImportError)),
        (NonFiniteError, (CollieError, ArithmeticError)),
    ],
)
def test_errors_are_also_what_python_would_raise(error, bases):
    for base in bases:
        with pytest.raises(base, match="a sentence"):
            raise error("a sentence")


def test_require_imports():
    import xml.dom.minidom

    assert require("xml.dom.minidom", "nothing") is xml.dom.minidom


@pytest.mark.parametrize("module", ["surely_absent", "surely_absent.inner"])
def test_require_says_what_installs_it(module):
    with pytest.raises(MissingExtraError) as caught:
        require(module, "collie-models[float8]", "float8=True")
    assert str(caught.value) == f"float8=True needs {module}: pip install 'collie-models[float8]'"
    assert caught.value.name == module
    with pytest.raises(MissingExtraError, match=r"^surely_absent is not installed: pip install 'x'$"):
        require("surely_absent", "x")


def test_a_package_that_is_there_but_broken_says_so_itself(tmp_path, monkeypatch):
    """An import that fails inside an installed package is not mended by installing that package."""
    (tmp_path / "half_there.py").write_text("import surely_absent_too")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_absent_too") as caught:
        require("half_there", "x")
    assert not isinstance(caught.value, MissingExtraError)
    sys.modules.pop("half_there", None)


def test_nearest():
    assert nearest("train_epoch", ["seed", "train_epochs"]) == "train_epochs"
    assert nearest("zzz", ["seed"]) is None


def test_writers_are_event_sinks():
    """A writer that cannot write still takes events: it neither blocks nor raises."""

    def give(sink: EventSink) -> None:
        assert sink.write(Log(level="info", message="x"), step=3) is None

    give(NullWriter())
    give(EventWriter("/proc/nowhere", 0))


def test_all_is_what_is_public():
    assert sorted(interfaces.__all__) == sorted(
        name
        for name, value in vars(interfaces).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("collie.")
    )
