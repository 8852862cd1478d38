"""The process that looks after one job: starts torchrun, keeps its state true, stops it, and records how it ended."""

import contextlib
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collie.events import Alert, RunFolder
from collie.jobs._children import Children, Started
from collie.jobs._fields import text_of, whole_of
from collie.jobs._log_times import LogClock
from collie.jobs._logs import NOTIFY_LOG, TORCHRUN_LOG, log_mode, open_to_group, rank_logs
from collie.jobs._notify import Notifier
from collie.jobs._order import Ladder, Means, Rung, StopOrder
from collie.jobs._outcome import outcome_of
from collie.jobs._peek import Peeker
from collie.jobs._process import Identity, become_subreaper
from collie.jobs._state import State
from collie.jobs._summary import display_name
from collie.jobs._watch import Watch

_TICK = 0.25  # seconds between two looks at orders and ranks; the end of a child is seen at once
_HEARTBEAT = 1.0  # seconds
_ORPHAN_GRACE = 10.0  # seconds between TERM and KILL for what torchrun left behind
_RECORD_TRIES = 30  # one a second: a disk that is full now may have room in a moment
_AT_WORK = (State.RUNNING, State.EVALUATING, State.SAVING, State.STALLED)
_SIGNALS_MEAN = (Means.STEP, Means.TERM, Means.KILL)


class Supervisor:
    """Looks after the job that `folder`'s job.json describes.

    It has no parent to speak of: it ignores SIGHUP, and TERM or INT to it mean: stop the job (a second one: now, a
    third one: kill). Should it be killed itself, training goes on and readers see from its identity that it is lost.

    Args:
        folder: the run's folder.
        ready: called once when the supervisor has taken hold of the run.
        found: processes of the job that run already; None means that it is to be started.
    """

    def __init__(
        self, folder: RunFolder, ready: Callable[[], None] = lambda: None, found: Children | None = None
    ) -> None:
        self.folder = folder
        self._ready = ready
        self._children = found
        self._job: dict[str, Any] = folder.read_job() or {}
        self._ladder = Ladder()
        self._last_written: StopOrder | None = None
        self._peeker = Peeker()
        self._log_clock = LogClock(folder)
        self._watch = Watch(folder, self._alarm)
        self._notifier = Notifier(text_of(self._job.get("notify")), Path(folder.logs) / NOTIFY_LOG)
        self._signals = 0  # so many came
        self._heard = 0  # so many were acted on
        self._state = State.STARTING if found is None else State.RUNNING
        self._since = time.time()
        self._message = "torchrun is starting" if found is None else "found running"
        self._attempt = self._begun = whole_of(self._job.get("attempt")) or 0
        self._next_beat = 0.0
        self._wake: socket.socket | None = None

    def run(self) -> int:
        """Supervise until every process of the job has ended. Returns 0: how the job ended stands in exit.json."""
        become_subreaper()
        self._listen()
        self._job["supervisor"] = Identity.of().as_dict()
        self.folder.write_job(self._job)
        self._beat(force=True)
        self._ready()
        if self._children is None:
            try:
                self._children = self._launch()
            except (OSError, ValueError, IndexError) as error:
                problem = f"torchrun did not start: {error}"
                self._record({"outcome": State.FAILED, "exit_code": None, "message": problem, "first_failure": None})
                return 0
        while not self._tick(self._children):
            pass
        self._end_orphans(self._children)
        self._record(outcome_of(self.folder, self._children.exit_code, self._ladder))
        return 0

    def _listen(self) -> None:
        """Signals only wake the loop and count; handlers, unlike SIG_IGN, are not passed on to torchrun."""
        self._wake, wakened = socket.socketpair()
        for end in (self._wake, wakened):
            end.setblocking(False)
        self._wakened = wakened
        signal.set_wakeup_fd(wakened.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        for number in (signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def _on_signal(self, *_: object) -> None:
        self._signals += 1

    def _launch(self) -> Children:
        argv = [str(argument) for argument in self._job.get("argv", [])]
        log = Path(self.folder.logs) / TORCHRUN_LOG
        return Started(argv, self._job.get("cwd"), log, log_mode(self.folder))

    def _tick(self, children: Children, seconds: float = _TICK) -> bool:
        """Wait for something to happen, then look at everything once; whether the job has ended."""
        assert self._wake is not None
        select.select([self._wake], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while self._wake.recv(4096):
                pass
        ended = children.ended()
        self._hear_orders()
        self._climb(children)
        self._observe()
        self._notifier.look()
        self._beat()
        return ended

    def _hear_orders(self) -> None:
        written = StopOrder.read(self.folder)
        # Each is heard once, as it comes: which is the later one no clock can say, since another host may give it.
        order = None if written == self._last_written else written
        self._last_written = written
        if self._signals > self._heard:
            self._heard = self._signals
            order = StopOrder(_SIGNALS_MEAN[min(self._signals, 3) - 1], by="a signal to the supervisor")
            with contextlib.suppress(OSError):
                order.write(self.folder)
                self._last_written = StopOrder.read(self.folder)
        if order is None and self._ladder.order is None:
            asked = next((request for request in self.folder.pending() if request.kind == "stop"), None)
            if asked is not None:
                order = StopOrder(Means.STEP, asked.t, by="a request")
        if order is not None:
            self._ladder.give(order)

    def _climb(self, children: Children) -> None:
        """Go to the next rung of a stop when it is time."""
        rung = self._ladder.climb(
            time.monotonic(), ranks_listen=self._ladder.order is not None and self._ranks_listen()
        )
        if self._ladder.rung is Rung.KILL:
            children.send(signal.SIGKILL)
        if rung is None:
            return
        if rung is Rung.REQUEST and not self._request_stop():
            rung = self._ladder.go_on(time.monotonic())  # ranks that were not asked are not waited for
        if rung is Rung.REQUEST:
            self._enter(State.STOPPING, "asked the ranks to stop after this step")
        elif rung is Rung.TERM:
            children.terminate()
            self._enter(State.STOPPING, "sent TERM to the workers")
        elif rung is Rung.KILL:
            self._enter(State.STOPPING, "killed the workers")

    def _request_stop(self) -> bool:
        """Whether a request to stop lies where the ranks look for it; on a full disk none can."""
        if any(request.kind == "stop" for request in self.folder.pending()):
            return True
        try:
            self.folder.request("stop")
        except OSError:
            return False
        return True

    def _ranks_listen(self) -> bool:
        """Whether a rank has said hello and not yet goodbye: such a rank reads requests."""
        return any(rank.pid is not None and rank.outcome is None for rank in self._peeker.ranks(self.folder))

    def _observe(self) -> None:
        """The job runs as soon as its workers do; what they say about it comes later, or never."""
        seen = self._watch.look()
        if self._state not in (State.STARTING, *_AT_WORK):  # a stop is what it is, whatever the ranks do meanwhile
            return
        if seen is not None:
            state, self._message = seen
            if state is not self._state:
                self._enter(state, self._message)
                if state is State.STALLED:
                    self._notify(str(state), self._message)
        elif self._state is State.STARTING and not self.folder.event_files() and rank_logs(self.folder):
            self._enter(State.RUNNING, "no events yet: the script is loading, or it writes none")

    def _alarm(self, alert: Alert) -> None:
        self._notify("alert", alert.message, code=alert.code, level=alert.level)

    def _notify(self, kind: str, message: str, **more: str) -> None:
        """Tell the user's command, if there is one."""
        name = display_name(self.folder.id)
        self._notifier.tell(
            kind=kind, run=self.folder.id, name=name, path=str(self.folder.path), message=message, t=time.time(), **more
        )

    def _enter(self, state: State, message: str) -> None:
        if state is not self._state:
            self._since = time.time()
        self._state, self._message = state, message
        self._beat(force=True)

    def _beat(self, *, force: bool = False) -> None:
        """Write the state with a fresh heartbeat; a full disk makes it late, never ends the supervisor."""
        if not force and time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + _HEARTBEAT
        ranks = rank_logs(self.folder)
        self._log_clock.look(ranks, last=self._state.ended)
        self._attempt = self._begun + max((logs.attempt for logs in ranks), default=0)
        torchrun = self._children.torchrun if self._children is not None else None
        state = {
            "state": self._state,
            "t": self._since,
            "heartbeat": time.time(),
            "message": self._message,
            "torchrun_pid": torchrun.pid if torchrun is not None else None,
            "torchrun": torchrun.as_dict() if torchrun is not None else None,
            "attempt": self._attempt,
        }
        with contextlib.suppress(OSError):
            self.folder.write_state(state)
            open_to_group(self.folder)

    def _end_orphans(self, children: Children) -> None:
        """Workers that outlived torchrun cannot go on without it, and nothing of a job stays behind it."""
        grace = _ORPHAN_GRACE if self._ladder.order is None else self._ladder.order.term_grace
        if not self._left_after(children, 0.0):
            return
        self._message = "ending processes that torchrun left behind"
        children.send(signal.SIGTERM)
        if self._left_after(children, grace):
            children.send(signal.SIGKILL)
            self._left_after(children, _ORPHAN_GRACE)

    def _left_after(self, children: Children, seconds: float) -> list[int]:
        """Wait up to `seconds` for all processes to end; returns those that have not."""
        deadline = time.monotonic() + seconds
        while left := self._of_the_job(children):
            if time.monotonic() >= deadline:
                return left
            self._tick(children, 0.05)
        children.ended()  # collects what has ended last
        return []

    def _of_the_job(self, children: Children) -> list[int]:
        left = children.left()
        return sorted({*left} - self._notifier.own(left))

    def _record(self, outcome: dict[str, Any]) -> None:
        """Write exit.json, then the last state; requests that nobody will answer now are taken away."""
        outcome = {**outcome, "t": time.time()}
        for _ in range(_RECORD_TRIES):
            try:
                self.folder.write_exit(outcome)
                break
            except FileNotFoundError:  # the run was deleted
                return
            except OSError as error:
                print(f"exit.json could not be written: {error}", file=sys.stderr)
                time.sleep(1.0)
        for request in self.folder.pending():
            with contextlib.suppress(OSError):
                self.folder.resolve(request.id)
        self._enter(State(outcome["outcome"]), outcome["message"])
        if self._state in (State.FINISHED, State.FAILED):
            self._notify(str(self._state), outcome["message"])
        self._notifier.settle()
