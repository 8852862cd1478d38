"""The application: one thread reads, one interval paints, and the keys that all screens share."""

import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from textual import work
from textual.app import App
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.worker import get_current_worker

from collie.events import RunFolder
from collie.interfaces import CollieError
from collie.jobs import Means, State, Summary, ask, asked_to_stop, stop
from collie.tui._screens import HelpScreen, RunScreen, RunsScreen, StopScreen
from collie.tui._screens._base import SnapshotScreen
from collie.tui._source import Query, Snapshot, Source, Stream
from collie.tui._theme import DARK, LIGHT
from collie.tui._widgets import AskPane, Question
from collie.tui._words import cost_of_stopping, progress


class Dashboard(App[None]):
    """Shows the runs under `root`. It reads files and writes requests; closing it touches no job.

    Args:
        root: the folder of runs.
        interval: seconds between two looks.
    """

    TITLE = "CoLLiE"
    CSS_PATH = "dashboard.tcss"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "help", key_display="?", id="help"),
        Binding("q", "quit", "quit", id="quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
    ]

    class Fresh(Message):
        """A snapshot that differs from the one before."""

        def __init__(self, snapshot: Snapshot, query: Query) -> None:
            super().__init__()
            self.snapshot = snapshot
            self.query = query

        def can_replace(self, message: Message) -> bool:
            """Only the latest counts."""
            return isinstance(message, Dashboard.Fresh)

    def __init__(self, root: Path, *, interval: float = 0.25) -> None:
        super().__init__()
        self.root = root
        self.snapshot = Snapshot()
        self.query_now = Query()
        self.has_read = False
        self.questions: tuple[Question, ...] = ()
        """What was asked of models from here."""
        self._source = Source(root)
        self._interval = interval
        self._wake = threading.Event()
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = DARK.name

    @property
    def host(self) -> str:
        """The host whose processes we can see."""
        return self._source.host

    def on_mount(self) -> None:
        """Show the runs, start reading, and count ages up."""
        self.push_screen(RunsScreen())
        self._read_forever()
        self.set_interval(1.0, self._paint)

    @work(thread=True, exit_on_error=False, group="reader")
    def _read_forever(self) -> None:
        """Read at the interval, and at once when another question is asked; tell only what is new."""
        worker = get_current_worker()
        before: tuple[Snapshot, Query] | None = None
        while not worker.is_cancelled:
            query = self.query_now
            try:
                snapshot = self._source.read(query)
            except Exception as error:  # one bad file must not end the dashboard; the banner shows it
                snapshot = replace(self.snapshot, problem=f"reading failed: {error}")
            if (snapshot, query) != before:
                before = (snapshot, query)
                self.post_message(self.Fresh(snapshot, query))
            # Catching up with a long run goes on without a pause.
            behind = snapshot.run is not None and snapshot.run.behind
            self._wake.wait(0.01 if behind else self._interval)
            self._wake.clear()

    def on_dashboard_fresh(self, message: Fresh) -> None:
        """Keep the snapshot and paint it; begin with the first run selected."""
        before, self.snapshot = self.snapshot, message.snapshot
        self.has_read = True
        if _offers(before) != _offers(self.snapshot):
            self.screen.refresh_bindings()
        runs = self.snapshot.runs
        if runs and self.query_now.run not in {run.id for run in runs}:
            self.select(runs[0].id)
        self._paint()

    def _paint(self) -> None:
        """Bring the visible screens up to date; one that stands under a question shows on as well."""
        for screen in reversed(self.screen_stack):
            if isinstance(screen, SnapshotScreen):
                screen.refresh_snapshot()
                return

    def select(self, run: str) -> None:
        """Make another run the selected one, with the log that matters in it."""
        if run != self.query_now.run:
            self.query_now = Query(run)
            self._wake.set()

    def look_at(self, *, rank: int | None = None, stream: Stream | None = None) -> None:
        """Show another rank's log, or its other output."""
        log = self.snapshot.log
        current = Query(
            self.query_now.run,
            rank if rank is not None else (log.rank if log is not None else None),
            stream or (log.stream if log is not None else None),
        )
        if current != self.query_now:
            self.query_now = current
            self._wake.set()

    def on_unmount(self) -> None:
        """Let the reading thread end at once."""
        self._wake.set()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Without a run there is none to open or to stop."""
        return self.snapshot.run is not None if action in ("open_run", "stop_run") else True

    def action_open_run(self) -> None:
        """The selected run on the whole screen."""
        if self.snapshot.run is not None and isinstance(self.screen, RunsScreen):
            self.push_screen(RunScreen())

    def action_help(self) -> None:
        """Keys and states."""
        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen())

    def action_stop_run(self) -> None:
        """Ask, then stop the selected run."""
        view = self.snapshot.run
        if view is None:
            return
        run = view.summary
        if not run.status.live and run.status.state is not State.LOST:
            self.notify(f"{run.name} has ended already: {run.status.state}.", severity="information")
            return

        def answered(means: Means | None) -> None:
            if means is not None:
                self._stop(run, means)

        self.push_screen(StopScreen(run, cost_of_stopping(view, time.time())), answered)

    @work(thread=True, exit_on_error=False, group="stop")
    def _stop(self, run: Summary, means: Means) -> None:
        try:
            before = stop(RunFolder(run.path), means)
            asked = before.state is not State.LOST or asked_to_stop(RunFolder(run.path))
        except (CollieError, OSError) as error:
            self.notify(str(error), severity="error", markup=False)
            return
        told = {Means.STEP: "was asked to stop after its step", Means.TERM: "gets TERM", Means.KILL: "is being killed"}
        word = told[means] if asked else "is lost: no process of it is left to ask"
        self.notify(f"{run.name} {word}.", markup=False)
        self._wake.set()

    def on_ask_pane_asked(self, message: AskPane.Asked) -> None:
        """Ask the model in training."""
        self._ask(message.run, message.text)

    @work(thread=True, exit_on_error=False, group="ask")
    def _ask(self, run: str, text: str) -> None:
        problem, request = "", f"{run} {len(self.questions)}"
        try:
            request = ask(RunFolder(self.root / run), "prompt", text=text).id
        except (CollieError, OSError) as error:
            problem = str(error)
        self.questions = (*self.questions, Question(run, request, text, problem))
        self.call_from_thread(self._paint)
        self._wake.set()

    def on_ask_pane_cancelled(self, message: AskPane.Cancelled) -> None:
        """Take a question back, or end its answer."""
        self._cancel(message.run, message.request)

    @work(thread=True, exit_on_error=False, group="ask")
    def _cancel(self, run: str, request: str) -> None:
        try:
            RunFolder(self.root / run).request("cancel", request=request)
        except (CollieError, OSError) as error:
            self.notify(str(error), severity="error", markup=False)

    def get_system_commands(self, screen: Any) -> Any:
        """The palette's commands, without those that make no sense here."""
        for command in super().get_system_commands(screen):
            if command.title not in ("Maximize", "Minimize", "Keys"):
                yield command


def _offers(snapshot: Snapshot) -> tuple[bool, bool]:
    """What decides which keys do something."""
    return snapshot.run is not None, snapshot.log is not None and snapshot.log.path is not None


def main(root: Path) -> int:
    """Run the dashboard on the terminal, then say which jobs go on."""
    dashboard = Dashboard(root)
    dashboard.run()
    live = [run for run in dashboard.snapshot.runs if run.status.live]
    if live:
        print("1 job goes on:" if len(live) == 1 else f"{len(live)} jobs go on:")
        names = [run.name for run in live]
        for run in live:
            called = run.name if names.count(run.name) == 1 else run.id
            print(f"  {run.name}  {run.state_word}, step {progress(run)}   stop it: collie-tui stop {called}")
        print("come back: collie-tui")
    sys.stdout.flush()
    return dashboard.return_code or 0
