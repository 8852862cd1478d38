"""collie-tui tail: what the ranks print, of one of them or of all in the order in which they wrote it."""

import argparse
import re
import sys
import time
from collections.abc import Callable

from collie.interfaces import ConfigError
from collie.jobs._json import to_json
from collie.jobs._peek import Peeker
from collie.jobs._status import status
from collie.jobs._tail import STREAMS, Line, MergedTail
from collie.jobs.cli._command import Commands, chosen_run

_INTERVAL = 0.25  # seconds between two looks


def add(commands: Commands) -> None:
    """Tell the parser of it."""
    parser = commands.add_for_run(
        "tail",
        tail_command,
        help="print the last lines of the ranks' output",
        description="Print the last lines of the ranks' output, merged in the order in which they were written: to the "
        "second, since that is how exactly the supervisor notes it. With --json one object a line, with the time.",
    )
    parser.add_argument("--rank", type=int, action="append", metavar="N", help="this rank only; may be given again")
    parser.add_argument("--stream", choices=("stdout", "stderr", "both"), default="both", help="of which output (both)")
    parser.add_argument("-n", "--lines", type=int, default=20, metavar="N", help="how many lines from the end (20)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until the run has ended")
    parser.add_argument("--grep", metavar="REGEX", help="only lines in which this is found")
    parser.add_argument("--invert", action="store_true", help="only lines in which it is not found")


def tail_command(options: argparse.Namespace) -> int:
    """Print the end of the logs, and with --follow what is added."""
    run = chosen_run(options)
    if options.lines < 0:
        raise ConfigError(f"--lines={options.lines}: give 0 or more.")
    streams = STREAMS if options.stream == "both" else (options.stream,)
    tail = MergedTail(run, options.rank, streams, _filter(options.grep, options.invert))
    tell = _as_json if options.json else _in_words(options.rank is None or len(options.rank) > 1)
    peeker = Peeker()
    live = status(run, peeker.ranks(run)).live
    last = tail.last(options.lines, whole=live)
    for line in last:
        tell(line)
    if not options.follow:
        if not last and not tail.found:
            print(f"{run.id} has no logs{_of(options.rank)}: only runs that collie-tui started have.", file=sys.stderr)
        return 0
    while live:
        live = status(run, peeker.ranks(run)).live
        while lines := tail.fresh():
            for line in lines:
                tell(line)
        if live:
            time.sleep(_INTERVAL)
    for line in tail.unfinished():
        tell(line)
    return 0


def _of(ranks: list[int] | None) -> str:
    return "" if ranks is None else f" of rank {', '.join(map(str, ranks))}"


def _filter(pattern: str | None, invert: bool) -> Callable[[str], bool] | None:
    if pattern is None:
        if invert:
            raise ConfigError("--invert says which lines to leave out by --grep, which was not given.")
        return None
    try:
        found = re.compile(pattern).search
    except re.error as error:
        raise ConfigError(f"--grep={pattern!r} is no regular expression: {error}.") from error
    return lambda text: (found(text) is None) is invert


def _as_json(line: Line) -> None:
    print(to_json({"t": line.t, "rank": line.rank, "stream": line.stream, "line": line.text}), flush=True)


def _in_words(several: bool) -> Callable[[Line], None]:
    def tell(line: Line) -> None:
        who = f"[{line.rank}{'!' if line.stream == 'stderr' else ''}] " if several else ""
        print(f"{who}{line.text}", flush=True)

    return tell
