"""Where rank 0 sends numbers besides the event file: csv, tensorboard, wandb."""

from __future__ import annotations

import contextlib
import csv
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TextIO

from collie.interfaces import require


class Sink(Protocol):
    """Takes numbers in the order in which they came, on one thread."""

    def bind(self, folder: Path) -> None:
        """Know the run's folder, before the first number."""
        return None  # not every sink keeps something there

    def state_dict(self) -> dict[str, str]:
        """What a resumed run needs to go on with what this one has begun; by names that no other sink has."""
        return {}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Go on with it, unless this run has begun something of its own."""
        return None

    def write(self, name: str, value: float, step: int | None) -> None:
        """Take one number of the global step `step`."""

    def flush(self) -> None:
        """Hand what was taken to the system: some times a second, after several numbers."""
        return None

    def close(self) -> None:
        """Finish what is open."""


class CsvSink(Sink):
    """One file a name, with the columns step and name: the layout that DeepSpeed's csv_monitor writes.

    A job of the same name appends to the files of the one before.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, TextIO] = {}

    def write(self, name: str, value: float, step: int | None) -> None:
        """Append one row."""
        file = self._files.get(name)
        if file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = (self._folder / f"{name.replace('/', '_')}.csv").open("a", newline="", encoding="utf-8")
            self._files[name] = file
            if file.tell() == 0:
                csv.writer(file).writerow(("step", name))
        csv.writer(file).writerow(("" if step is None else step, value))

    def flush(self) -> None:
        """Hand all rows to the system."""
        for file in self._files.values():
            file.flush()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


class TensorboardSink(Sink):
    """Scalars in an event file of tensorboard, written by tensorboard's own package, which needs no torch."""

    def __init__(self, folder: Path) -> None:
        self._summary = _tensorboard()
        self._folder = folder
        self._writer: Any = None

    def write(self, name: str, value: float, step: int | None) -> None:
        """Add one scalar."""
        if self._writer is None:
            self._writer = self._summary.Writer(str(self._folder))
        self._writer.add_scalar(name, value, step=step or 0)

    def flush(self) -> None:
        """Have tensorboard write what it buffers."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write what is buffered and close the file."""
        if self._writer is not None:
            self._writer.close()


_NOTE = "wandb.json"


class WandbSink(Sink):
    """Scalars of one wandb run.

    It goes on where the run goes on: its id is kept in the run's folder, and in the checkpoints that another run, with
    a folder of its own, may resume from.
    """

    def __init__(self, options: dict[str, Any], job_name: str) -> None:
        self._wandb = _wandb()
        names = {"project": "project", "group": "group", "team": "entity"}
        self._options = {ours: options[theirs] for theirs, ours in names.items() if options.get(theirs)}
        self._options["name"] = job_name
        self._folder: Path | None = None
        self._id: str | None = None
        self._run: Any = None
        self._last = 0

    def bind(self, folder: Path) -> None:
        """Keep the id, and what wandb itself writes, in this folder."""
        self._folder = folder
        with contextlib.suppress(OSError, ValueError, KeyError):  # none yet, or one that was cut off
            self._id = json.loads((folder / _NOTE).read_text())["id"]

    def state_dict(self) -> dict[str, str]:
        """The run's id, if there is one yet."""
        return {"wandb": self._id} if self._id is not None else {}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Go on with the run of this id, unless there is one in this run's folder."""
        self._id = self._id or state.get("wandb")

    def write(self, name: str, value: float, step: int | None) -> None:
        """Log one scalar. wandb refuses steps that go back, so a number that comes late joins the latest step."""
        if self._run is None:
            self._run = self._begun()
        self._last = max(self._last, step or 0)
        self._run.log({name: value}, step=self._last)

    def close(self) -> None:
        """Finish the run, which uploads it."""
        if self._run is not None:
            self._run.finish()

    def _begun(self) -> Any:
        if self._folder is None:
            return self._wandb.init(**self._options)
        self._id = self._id or secrets.token_hex(4)
        (self._folder / _NOTE).write_text(json.dumps({"id": self._id}))
        return self._wandb.init(**self._options, id=self._id, resume="allow", dir=str(self._folder))


def make_sinks(monitor_config: dict[str, Any]) -> list[Sink]:
    """Return the sinks that a normalised monitor_config enables.

    Raises:
        MissingExtraError: one needs a package that is not installed.
    """
    sinks: list[Sink] = []
    table = monitor_config["csv_monitor"]
    if table["enabled"]:
        sinks.append(CsvSink(_folder(table, "csv_monitor")))
    board = monitor_config["tensorboard"]
    if board["enabled"]:
        sinks.append(TensorboardSink(_folder(board, "tensorboard")))
    remote = monitor_config["wandb"]
    if remote["enabled"]:
        sinks.append(WandbSink(remote, remote["job_name"]))
    return sinks


def _folder(options: dict[str, Any], default: str) -> Path:
    return Path(str(options.get("output_path") or default)).expanduser() / str(options["job_name"])


def _tensorboard() -> ModuleType:
    return require("tensorboard.summary", "collie-config[tensorboard]", "ds_config's monitor tensorboard")


def _wandb() -> ModuleType:
    return require("wandb", "collie-config[wandb]", "ds_config's monitor wandb")
