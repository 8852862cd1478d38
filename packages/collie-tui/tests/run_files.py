"""Event files as ranks write them."""

import socket
from collections.abc import Iterable
from pathlib import Path

from collie.events import VERSION, Event, Hello, Record, RunFolder, encode


def hello(rank: int = 0, world: int = 1, *, tp: int = 1, pid: int = 1, start: float | None = None) -> Hello:
    """A greeting from this host."""
    sizes = {"dp_size": world // tp, "tp_size": tp, "pp_size": 1}
    return Hello(socket.gethostname(), pid, start, world, rank // tp, rank % tp, 0, **sizes, device="cpu", versions={})


def write_events(
    run: RunFolder, rank: int, events: Iterable[tuple[Event, int | None, float]], attempt: int = 0
) -> Path:
    """Append (event, step, seconds since the epoch) to a rank's file, as its writer would."""
    path = run.events / f"rank-{rank:05d}.a{attempt}.jsonl"
    first = path.read_text().count("\n") if path.exists() else 0
    with path.open("a") as file:
        for seq, (event, step, t) in enumerate(events, first):
            file.write(encode(Record(VERSION, seq, t, rank, attempt, step, event)) + "\n")
    return path
