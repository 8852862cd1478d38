"""Work on many tasks in forked processes, its results in the tasks' order."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn, TypeVar, cast

from collie.interfaces import CollieError, DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 8  # finished tasks a process that may wait for an earlier one


def in_order(
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    processes: int,
    name: Callable[[Task], str],
    *,
    queued: int = 0,
) -> Generator[Result, None, None]:
    """`work` of each task, done in `processes` forked processes. Close the iterator to end them early.

    `work` is inherited by the fork and may be a closure over anything, such as the rows themselves; tasks and results
    are pickled. Tasks are read as they are needed. Processes are forked because a script without an
    `if __name__ == "__main__"` could not start others, and as torch's DataLoader does: `work` must touch neither a GPU
    nor a process group. They end with the iterator, at Ctrl+C, and, where this process is killed, after their task.

    name: what a task is, for errors. queued: how many tasks wait at each process for it to be ready, so that it need
    not wait for this one; only for tasks of few bytes, which fit into a pipe: of large ones one end would wait for the
    other to read.
    Raises:
        CollieError: `work` raised it.
        DataError: `work` raised something else, or its process died; it says at which task.
    """
    workers: list[_Worker] = []
    try:
        for _ in range(processes):
            workers.append(_fork(work, [worker.pipe for worker in workers]))
        yield from _results(workers, tasks, name, deque(workers * (1 + queued)))
    finally:
        for worker in workers:
            worker.process.kill()  # it holds nothing that would need to be put away
        for worker in workers:
            worker.process.join()
            worker.process.close()
            worker.pipe.close()


def here(
    work: Callable[[Task], Result], tasks: Iterable[Task], name: Callable[[Task], str]
) -> Generator[Result, None, None]:
    """The same in this process."""
    for task in tasks:
        try:
            result = work(task)
        except CollieError:
            raise
        except Exception as error:
            raise _failed(name(task), error) from error
        yield result


@dataclass
class _Worker:
    """A process, our end of its pipe, and the tasks it was given, with their numbers: it is at the first."""

    process: Any
    pipe: Connection
    tasks: deque[tuple[int, Any]] = field(default_factory=deque)


@dataclass(frozen=True)
class _Failure:
    """What a worker sends in place of a result."""

    error: BaseException
    text: str


class _Remote(Exception):
    """The traceback of an error in another process, as its cause."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _results(
    workers: list[_Worker], tasks: Iterable[Any], name: Callable[[Any], str], places: deque[_Worker]
) -> Iterator[Any]:
    """places: where a task can be put, each worker as often as it takes one at a time."""
    waiting = enumerate(tasks)
    done: dict[int, tuple[Any, Any]] = {}  # tasks and what came of them, errors too: the first is to be told of
    given = returned = 0
    while True:
        while places and given - returned < _AHEAD * len(workers) and (task := next(waiting, None)) is not None:
            worker = places.popleft()
            worker.tasks.append(task)
            _send(worker, task[1], name)
            given += 1
        busy = {worker.pipe: worker for worker in workers if worker.tasks}
        if not busy:
            return
        for pipe in wait(list(busy)):
            worker = busy[cast(Connection, pipe)]
            answer = _receive(worker, name)
            number, of = worker.tasks.popleft()
            done[number] = of, answer
            places.append(worker)
        while returned in done:
            of, answer = done.pop(returned)
            if isinstance(answer, _Failure):
                _raise(answer, name(of))
            yield answer
            returned += 1


def _send(worker: _Worker, task: Any, name: Callable[[Any], str]) -> None:
    try:
        worker.pipe.send_bytes(pickle.dumps(task, pickle.HIGHEST_PROTOCOL))
    except BrokenPipeError:
        raise _died(worker, name) from None


def _receive(worker: _Worker, name: Callable[[Any], str]) -> Any:
    try:
        return pickle.loads(worker.pipe.recv_bytes())
    except (EOFError, ConnectionResetError):
        raise _died(worker, name) from None


def _raise(failure: _Failure, task: str) -> NoReturn:
    if isinstance(failure.error, CollieError):
        raise failure.error
    raise _failed(task, failure.error) from _Remote(failure.text)


def _failed(task: str, error: BaseException) -> DataError:
    return DataError(f"{task} cannot be tokenised: {type(error).__name__}: {error}")


def _died(worker: _Worker, name: Callable[[Any], str]) -> DataError:
    worker.process.join()
    code = worker.process.exitcode
    how = f"exited with status {code}"
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        how += ", as the kernel does where memory runs out: fewer processes need less of it"
    return DataError(f"{name(worker.tasks[0][1])}: the process that tokenised them {how}.")


def _fork(work: Callable[[Any], Any], others: Sequence[Connection]) -> _Worker:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs, [*others, ours]), name="collie-tokenise", daemon=True)
    with warnings.catch_warnings():
        # Python ≥ 3.12 warns that threads do not survive a fork: a worker needs none of them
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    theirs.close()  # else the end of the process would not close the pipe
    return _Worker(process, ours)


def _serve(work: Callable[[Any], Any], pipe: Connection, inherited: Sequence[Connection]) -> None:
    """The whole life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the parent, too, and that ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent may have a way of its own
    gc.freeze()  # a collection would write to, and so copy, every page of the rows that are shared
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process; and its threads did not survive the fork
    for connection in inherited:
        connection.close()  # so that every pipe ends with the parent
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            pipe.send_bytes(_answer(work, pipe.recv_bytes()))


def _answer(work: Callable[[Any], Any], task: bytes) -> bytes:
    # pickle itself and no Connection.send: torch would send tensors by open files, which end with their process
    try:
        return pickle.dumps(work(pickle.loads(task)), pickle.HIGHEST_PROTOCOL)
    except BaseException as error:  # a panic in tokenizers is no Exception
        text = traceback.format_exc()
        try:
            failure = pickle.dumps(_Failure(error, text))
            pickle.loads(failure)
        except Exception:
            failure = pickle.dumps(_Failure(RuntimeError(f"{type(error).__name__}: {error}"), text))
        return failure
