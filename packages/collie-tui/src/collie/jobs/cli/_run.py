"""collie-tui run: start a job and follow it."""

import argparse
import sys
import time

from collie.events import Alert, Checkpoint, Eval, Record, RunFolder, Sample, Step
from collie.jobs._fields import whole_of
from collie.jobs._launch import start
from collie.jobs._logs import LogTail, rank_logs
from collie.jobs._reader import RunReader
from collie.jobs._status import Status
from collie.jobs._summary import display_name
from collie.jobs.cli._command import Commands
from collie.jobs.cli._exit import EXIT_CODES
from collie.jobs.cli._printers import JsonPrinter, Printer, TextPrinter

_INTERVAL = 0.2  # seconds between two looks
_STEP_INTERVAL = 2.0  # seconds between two lines about steps
_SAMPLES = 3  # decoded texts shown of one evaluation


def add(commands: Commands) -> None:
    """Tell the parser of it."""
    run = commands.add(
        "run",
        run_command,
        help="start a script under torchrun as a job of its own, and follow it",
        description="Start SCRIPT under torchrun as a job that outlives this terminal, and follow it: the output of "
        "rank 0, steps, evaluations. Ctrl-C leaves the job running. The command line is kept in the run's job.json, "
        "which only you can read (with --group-readable your group too): give secrets in the environment instead.",
        epilog="exit status: 0 the job finished, 1 it failed, 3 it was stopped, 4 it was lost, 130 it was left running",
    )
    run.add_argument("--nproc", type=int, metavar="N", help="number of ranks; by default one a GPU, or 1")
    run.add_argument("--name", help="what to call the run; by default the script's name")
    run.add_argument("--python", metavar="PATH", help="the Python that has torch; by default the one of collie-tui")
    run.add_argument("--detach", action="store_true", help="start the job and return at once")
    run.add_argument(
        "--group-readable", action="store_true", help="let your group read the run, but never ask anything of it"
    )
    run.add_argument(
        "--notify",
        metavar="CMD",
        default="",
        help="a shell command that gets JSON on its input when the job finishes, fails, stalls or raises an alert",
    )
    run.add_argument("--json", action="store_true", help="print one JSON object a line")
    run.add_argument("script", metavar="SCRIPT", help="path of a Python script")
    rest = run.add_argument("args", metavar="ARGS", nargs=argparse.REMAINDER, help="arguments of the script")
    rest.required = False  # or a missing SCRIPT would be told as a missing ARGS too


def printer_for(options: argparse.Namespace) -> Printer:
    """Lines for people, or JSON for programs."""
    return JsonPrinter() if options.json else TextPrinter()


def run_command(options: argparse.Namespace) -> int:
    """Start the job; follow it to its end unless asked not to. Returns what the job's end means as exit status."""
    printer = printer_for(options)
    try:
        run = start(
            options.script,
            options.args,
            nproc=options.nproc,
            name=options.name,
            root=getattr(options, "runs", None),
            python=options.python,
            group_readable=options.group_readable,
            notify=options.notify,
        )
    except KeyboardInterrupt:
        print(
            "\ncollie-tui: interrupted while the job was starting: it was ended, nothing of it runs.", file=sys.stderr
        )
        return EXIT_CODES["left"]
    return follow(run, printer, detach=options.detach)


def follow(run: RunFolder, printer: Printer, *, detach: bool) -> int:
    """Follow a job that was started just now, or leave it; returns what its end means as exit status."""
    printer.started(run, run.read_job() or {})
    if detach:
        printer.left(run)
        return 0
    try:
        status = Follower(run, printer).follow()
    except KeyboardInterrupt:
        printer.left(run)
        return EXIT_CODES["left"]
    return EXIT_CODES[str(status.state)]


class Follower:
    """Prints what a run does until it has ended: its state, rank 0's output, steps, evaluations, texts."""

    def __init__(self, run: RunFolder, printer: Printer) -> None:
        self.run = run
        self.printer = printer
        self._reader = RunReader(run)
        self._attempt = whole_of((run.read_job() or {}).get("attempt")) or 0  # earlier ones were told before
        self._output: dict[str, LogTail] = {}
        self._lead: int | None = None  # the rank whose steps are told: the first that knows the loss
        self._waiting: Record | None = None
        self._next_step = 0.0
        self._texts: tuple[int | None, int] = (None, 0)

    def follow(self) -> Status:
        """Print until the run has ended; returns how."""
        before: Status | None = None
        while True:
            status = self._reader.view().summary.status
            if status != before and status.live:
                self.printer.state(status)
            before = status
            # What was written before the end is printed before the end is told.
            while self._relay():
                pass
            if not status.live:
                self._finish()
                self.printer.ended(display_name(self.run.id), status)
                return status
            time.sleep(_INTERVAL)

    def _relay(self) -> bool:
        """Print what is new; whether there may be more at once."""
        self._relay_output()
        records = self._reader.refresh()
        for record in records:
            if record.attempt >= self._attempt:
                self._tell(record)
        if self._waiting is not None and time.monotonic() >= self._next_step:
            self._tell_waiting()
        return self._reader.view().behind

    def _relay_output(self) -> None:
        if not self._output:
            logs = next((entry for entry in rank_logs(self.run) if entry.rank == 0), None)
            if logs is None:
                return
            self._output = {"stdout": LogTail(logs.stdout), "stderr": LogTail(logs.stderr)}
        for stream, tail in self._output.items():
            while lines := tail.read():
                for line in lines:
                    self.printer.output(stream, line)

    def _tell(self, record: Record) -> None:
        event = record.event
        if isinstance(event, Step):
            if self._lead is None and event.loss is not None:
                self._lead = record.rank
                self._next_step = 0.0
            if record.rank == self._lead:
                first = self._waiting is None and self._next_step == 0.0
                self._waiting = record
                if first:
                    self._tell_waiting()
        elif isinstance(event, Eval | Checkpoint | Alert):
            self._tell_waiting()
            self.printer.event(record)
        elif isinstance(event, Sample) and record.rank == 0:
            step, count = self._texts
            count = count + 1 if step == record.step else 1
            self._texts = (record.step, count)
            if count <= _SAMPLES:
                self.printer.event(record)

    def _tell_waiting(self) -> None:
        if self._waiting is not None:
            self.printer.step(self._waiting, self._reader.view().summary)
            self._waiting = None
            self._next_step = time.monotonic() + _STEP_INTERVAL

    def _finish(self) -> None:
        self._tell_waiting()
        for stream, tail in self._output.items():
            if tail.partial:
                self.printer.output(stream, tail.partial)
        sys.stdout.flush()
