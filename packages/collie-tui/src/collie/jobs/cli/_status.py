"""collie-tui status: everything about one run, on a page."""

import argparse
import dataclasses
import time
from typing import Any

from collie.jobs._fields import text_of
from collie.jobs._format import (
    format_age,
    format_ago,
    format_bytes,
    format_count,
    format_duration,
    format_number,
    format_progress,
)
from collie.jobs._json import to_json
from collie.jobs._rank import RankView
from collie.jobs._reader import RunReader, RunView
from collie.jobs.cli._command import Commands, chosen_run
from collie.jobs.cli._exit import EXIT_CODES
from collie.jobs.cli._table import print_table

_HEAD = ("RANK", "HOST", "STEP", "STEP TIME", "TOK/S", "MEMORY", "LAST EVENT", "GOODBYE")


def add(commands: Commands) -> None:
    """Tell the parser of it."""
    commands.add_for_run(
        "status",
        status_command,
        help="show one run: its state, ranks, last evaluation, checkpoint and alerts",
        epilog="exit status: 0 it runs or has finished, 1 it failed, 3 it was stopped, 4 it is lost",
    )


def status_command(options: argparse.Namespace) -> int:
    """Print one run; the exit status says how it stands."""
    run = chosen_run(options)
    reader = RunReader(run)
    reader.refresh()
    while (view := reader.view()).behind:
        reader.refresh()
    if options.json:
        print(to_json(_as_dict(view), indent=2))
    else:
        _print(view, run.read_job() or {}, time.time())
    return EXIT_CODES.get(str(view.summary.status.state), 0)


def _as_dict(view: RunView) -> dict[str, Any]:
    t, step = view.checkpoint or (None, None)
    return {
        **view.summary.as_dict(),
        "grad_norm": view.summary.grad_norm,
        "ranks": [dataclasses.asdict(rank) for rank in view.ranks],
        "evaluations": [dataclasses.asdict(one) | {"results": dict(one.results)} for one in view.evaluations],
        "checkpoint": None if t is None else {"t": t, "step": step},
        "alerts": [dataclasses.asdict(alert) for alert in view.alerts],
        "lost_events": view.lost_events,
    }


def _print(view: RunView, job: dict[str, Any], now: float) -> None:
    run = view.summary
    print(f"{run.name}  {run.state_word}" + (f": {run.status.message}" if run.status.message else ""))
    figures = [f"step {format_progress(run.step, run.total)}", f"loss {format_number(run.loss)}"]
    figures += [f"lr {format_number(run.lr)}", f"grad norm {format_number(run.grad_norm)}"]
    figures += [f"{format_count(run.throughput)} tok/s"]
    if run.eta is not None:
        figures.append(f"{format_duration(run.eta)} to go")
    _line("now", "  ".join(figures))
    _line("asked", f"{text_of(job.get('script')) or '—'} on {run.nproc or '—'} ranks, {_ago(run.created, now)}")
    _line("folder", str(run.path))
    if view.checkpoint is not None:
        t, step = view.checkpoint
        _line("checkpoint", f"step {'—' if step is None else step}, {_ago(t, now)}")
    for one in view.evaluations:
        results = "  ".join(f"{name} {format_number(value)}" for name, value in one.results)
        _line("evaluation", f"{one.name}, step {'—' if one.step is None else one.step}: {results}")
    for alert in view.alerts:
        _line(alert.level, f"rank {alert.rank}, {_ago(alert.t, now)}: {alert.message}")
    if view.lost_events:
        _line("lost", f"{view.lost_events} events were dropped or could not be read")
    for line in run.status.failure.tail if run.status.failure is not None else ():
        print(f"    {line}")
    if view.ranks:
        print()
        print_table(_HEAD, [_row(rank, now) for rank in view.ranks])


def _line(word: str, text: str) -> None:
    print(f"  {word:<11} {text}")


def _ago(t: float | None, now: float) -> str:
    return format_ago(None if t is None else now - t)


def _row(rank: RankView, now: float) -> tuple[str, ...]:
    return (
        str(rank.rank),
        rank.host or "—",
        format_progress(rank.step, None),
        format_duration(rank.seconds),
        format_count(rank.tgs),
        format_bytes(rank.memory),
        format_age(None if rank.t is None else now - rank.t),
        rank.outcome or "",
    )
