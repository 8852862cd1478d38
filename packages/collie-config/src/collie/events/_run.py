"""The folder of one run: what was asked, what state it is in, its events, and requests to it. Private to its user.

<run-id>/  job.json  state.json  exit.json  events/  logs/  control/
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeGuard

from collie.events._files import open_regular
from collie.events._writer import file_mode
from collie.interfaces import ConfigError, nearest

RUN_DIR_VARIABLE = "COLLIE_RUN_DIR"
REQUESTS = ("stop", "checkpoint", "evaluate", "prompt", "cancel")
REQUEST_BYTES = 2**20
"""How large a request may be. What lies in control/ and is larger is none."""
_LARGEST = 2**24  # bytes of job.json, state.json or exit.json
_EVENT_FILE = re.compile(r"rank-(\d+)\.a(\d+)\.jsonl")
_REQUEST_FILE = re.compile(r"\d{20}-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Request:
    """Something that a person asked of a running job."""

    id: str
    """Names it in the answer and to `RunFolder.resolve`."""
    kind: str
    """stop, checkpoint, evaluate, prompt, or cancel (of the prompt whose id is its argument `request`)."""
    t: float
    """When it was asked, in seconds since the epoch."""
    arguments: dict[str, Any]
    """What came with it, by name."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run on disk. Everything in it is data: nothing in it is ever executed or unpickled."""

    path: Path
    """Its folder; a string will do."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @classmethod
    def create(
        cls, root: str | os.PathLike[str] | None = None, *, name: str = "run", group_readable: bool = False
    ) -> Self:
        """Make the folder of a new run under `root` (default: runs_root()), with mode 0700.

        `group_readable` opens it, but never control/, to the group for reading.
        """
        root = runs_root() if root is None else Path(root)
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:40] or "run"
        while True:
            path = root / f"{time.strftime('%Y%m%d-%H%M%S')}-{label}-{secrets.token_hex(2)}"
            try:
                path.mkdir(mode=0o700)
                break
            except FileExistsError:
                continue
        run = cls(path)
        for folder in (run.events, run.logs, run.control):
            folder.mkdir(mode=0o700)
        if group_readable:
            for folder in (run.path, run.events, run.logs):
                folder.chmod(0o750)
        return run

    @property
    def id(self) -> str:
        """Name of the folder: date, time, name, four hex digits."""
        return self.path.name

    @property
    def events(self) -> Path:
        """One file a rank and attempt, appended to by that rank alone."""
        return self.path / "events"

    @property
    def logs(self) -> Path:
        """What torchrun writes: stdout and stderr of each rank."""
        return self.path / "logs"

    @property
    def control(self) -> Path:
        """Requests, one file each."""
        return self.path / "control"

    def event_files(self) -> list[Path]:
        """Return the event files by rank, then attempt."""
        found = []
        for path in _entries(self.events):
            if match := _EVENT_FILE.fullmatch(path.name):
                found.append((int(match[1]), int(match[2]), path))
        return [path for _, _, path in sorted(found)]

    def read_job(self) -> dict[str, Any] | None:
        """Return what was asked; None where it is not there or not readable."""
        return _read(self.path / "job.json")

    def read_state(self) -> dict[str, Any] | None:
        """Return the supervisor's last word; None where there is none."""
        return _read(self.path / "state.json")

    def read_exit(self) -> dict[str, Any] | None:
        """Return how the run ended; None while it has not."""
        return _read(self.path / "exit.json")

    def write_job(self, values: Mapping[str, Any]) -> None:
        """Replace job.json in one act."""
        _replace(self.path / "job.json", values)

    def write_state(self, values: Mapping[str, Any]) -> None:
        """Replace state.json in one act."""
        _replace(self.path / "state.json", values)

    def write_exit(self, values: Mapping[str, Any]) -> None:
        """Replace exit.json in one act."""
        _replace(self.path / "exit.json", values)

    def request(self, kind: str, **arguments: Any) -> str:
        """Ask the run for something; return the request's id. Rank 0 reads it after its current step.

        Raises:
            ConfigError: no such kind of request, or arguments that are too large for one.
        """
        if kind not in REQUESTS:
            meant = nearest(kind, REQUESTS)
            raise ConfigError(
                f"request={kind!r} is not one of {', '.join(REQUESTS)}." + (f" Use {meant!r}." if meant else "")
            )
        now = time.time_ns()
        values = {"kind": kind, "t": now / 1e9, "arguments": arguments}
        size = len(_as_json(values))
        if size > REQUEST_BYTES:
            raise ConfigError(f"a {kind!r} request of {size:,} bytes is too large: {REQUEST_BYTES:,} at most.")
        request_id = f"{now:020d}-{secrets.token_hex(4)}"
        self.control.mkdir(mode=0o700, exist_ok=True)
        _replace(self.control / f"{request_id}.json", values)
        return request_id

    def pending(self) -> list[Request]:
        """Return the requests that nobody has resolved, oldest first. Files that are no requests are left alone."""
        found = []
        for path in sorted(_entries(self.control)):
            if path.suffix != ".json" or not _REQUEST_FILE.fullmatch(path.stem):
                continue
            values = _read_object(path, REQUEST_BYTES, follow=False)
            if values is None or values.get("kind") not in REQUESTS:
                continue
            t, arguments = values.get("t"), values.get("arguments")
            if _is_time(t) and isinstance(arguments, dict):
                found.append(Request(path.stem, values["kind"], float(t), arguments))
        return found

    def resolve(self, request_id: str) -> None:
        """Remove a request that has been answered; one that is gone already is no error."""
        if _REQUEST_FILE.fullmatch(request_id):
            (self.control / f"{request_id}.json").unlink(missing_ok=True)


def runs_root() -> Path:
    """Return the folder that holds all runs: $COLLIE_RUNS, else ~/.local/share/collie/runs."""
    if root := os.environ.get("COLLIE_RUNS"):
        return Path(root).expanduser()
    return Path.home() / ".local" / "share" / "collie" / "runs"


def list_runs(root: str | os.PathLike[str] | None = None) -> list[RunFolder]:
    """Return the runs under `root` (default: runs_root()), newest first. A root that does not exist has none.

    Folders that this user may not enter, other users' runs in a shared root, are left out.
    """
    root = runs_root() if root is None else Path(root)
    runs = [RunFolder(path) for path in _entries(root) if os.path.isdir(path / "events")]
    return sorted(runs, key=lambda run: run.id, reverse=True)


def current_run() -> RunFolder | None:
    """Return the run that the supervisor has made for this process ($COLLIE_RUN_DIR); None where there is none."""
    path = os.environ.get(RUN_DIR_VARIABLE)
    return RunFolder(Path(path)) if path else None


def current_attempt() -> int:
    """Return how often this job has begun before: resumed as another attempt of its run, or restarted by torchrun."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    begun = _of_job("attempt")
    return (begun if isinstance(begun, int) else 0) + (int(count) if count.isdecimal() else 0)


def asked_to_resume() -> str | None:
    """Return what the supervisor was told that this process's training is to go on from: a checkpoint, or "auto"."""
    told = _of_job("resume")
    return told if isinstance(told, str) else None


def _of_job(name: str) -> Any:
    """Return an entry of job.json of the run that a supervisor has made for this process."""
    run = current_run()
    return ((run.read_job() if run is not None else None) or {}).get(name)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _read(path: Path) -> dict[str, Any] | None:
    return _read_object(path, _LARGEST, follow=True)


def _read_object(path: Path, limit: int, *, follow: bool) -> dict[str, Any] | None:
    """Read a file that anybody who may write here has put here: it must be a file, and none too large to be read."""
    try:
        with open_regular(path, follow=follow) as file:
            data = file.read(limit + 1)
        values = json.loads(data) if len(data) <= limit else None
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _is_time(t: Any) -> TypeGuard[float]:
    """Whether `t` is a number of seconds; JSON also has NaN, and whole numbers that no float holds."""
    return isinstance(t, (int, float)) and not isinstance(t, bool) and 0 <= t < 2**53


def _as_json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(values), ensure_ascii=False, indent=1).encode("utf-8", "replace")


def _replace(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    data = _as_json(values)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), file_mode(path.parent))
            file.write(data)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
