"""Ranks for tests, forked from a process that has imported everything: 0.1 s where torchrun costs 5 s or more.

The parent holds the rendezvous store, as torchrun's agent does: its port is bound before any rank starts, so
nothing can take it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import math
import multiprocessing
import os
import pickle
import random
import signal
import tempfile
import time
import traceback
import unittest
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

_PR_SET_PDEATHSIG = 1
_GRACE_S = 2.0  # after a first failure, how long the others may still report theirs
# glibc's resolver: torch's store asks DNS for the name of each peer (::ffff:127.0.0.1 is in no hosts file), for its log
# messages alone, and by default waits 5 s and again where an answer is lost
_RESOLVER = "timeout:1 attempts:1"
_STACKS_S = 1.0  # how long a silent rank has to write down where it stands before it is ended


class RankError(RuntimeError):
    """A rank raised, died or fell silent: `rank` is its number, `exception` what it raised, if it could be pickled."""

    def __init__(self, message: str, rank: int, exception: BaseException | None = None) -> None:
        super().__init__(message)
        self.rank = rank
        self.exception = exception


@dataclass(frozen=True)
class _Failure:
    """What a child sends in place of a result."""

    exception: BaseException
    text: str
    when: float


@dataclass
class _Rank:
    """The parent's view of one child."""

    number: int
    process: Any
    pipe: Connection
    stacks: Path
    done: bool = False
    result: Any = None
    error: RankError | None = None
    failed_at: float = -math.inf  # monotonic seconds; a rank that died without a word comes first


def run_ranks(
    n: int,
    function: Callable[..., Any],
    *args: Any,
    timeout: float = 60,
    init: bool = False,
    return_exceptions: bool = False,
) -> list[Any]:
    """Call `function(*args)` in n forked ranks on the CPU and return their results in rank order.

    Each child has RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, one thread, and the
    same seed in `random` and torch. The default process group is left to `collie.parallel.setup_distribution`;
    with `init` it is made before the call (gloo). `function` may be a closure; results travel pickled by value,
    tensors included. A rank that has its result waits for the others, so that no rank loses its peer in a last
    collective; a rank that fails leaves at once, as in real life.

    timeout: seconds for all ranks together. With `return_exceptions` a failing rank's entry is its RankError and
    all are waited for.
    Raises RankError: the first failure, with its rank and traceback; or, at the timeout, the silent ranks and
    where each stands, after ending them (by their own ids). A unittest.SkipTest in a rank is raised as it is.
    RuntimeError: this process has a process group of its own, which children would inherit.
    """
    if n < 1:
        raise ValueError(f"run_ranks needs at least one rank, got n={n}")
    if dist.is_initialized():
        raise RuntimeError(
            "run_ranks forks this process, which has a process group itself, and no rank could make its own: "
            "run what made it in run_ranks(1, ...), or end it with torch.distributed.destroy_process_group()"
        )
    os.environ.setdefault("RES_OPTIONS", _RESOLVER)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory(prefix="collie-ranks-") as folder:
        ranks: list[_Rank] = []
        try:
            for number in range(n):
                stacks = Path(folder) / f"{number}.txt"
                ranks.append(_fork(number, _environment(number, n, store.port), stacks, init, function, args))
            _start(ranks)
            _collect(ranks, timeout, all_of_them=return_exceptions)
            failed = [rank for rank in ranks if rank.error is not None]
            silent = [rank for rank in ranks if not rank.done]
            if silent and (return_exceptions or not failed):
                raise _silence(silent, ranks, timeout)
        finally:
            _end(ranks)
            del store  # here and not with the traceback that may hold this frame
    if failed and not return_exceptions:
        _raise_first(failed)
    return [rank.result if rank.error is None else rank.error for rank in ranks]


def _raise_first(failed: list[_Rank]) -> NoReturn:
    """The first failure in time is the cause: the others are mostly connections that it broke."""
    error = min(failed, key=lambda rank: rank.failed_at).error
    assert error is not None
    if isinstance(error.exception, unittest.SkipTest):
        raise error.exception
    raise error from error.exception


def _environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun sets for a store that the agent holds. CUDA stays unseen: a forked child cannot use it."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _fork(
    number: int,
    environment: dict[str, str],
    stacks: Path,
    init: bool,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> _Rank:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_child, args=(theirs, environment, stacks, init, function, args), name=f"rank {number}"
    )
    with warnings.catch_warnings():
        # Python ≥ 3.12 warns that threads do not survive a fork: ours hold nothing that a rank needs
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    theirs.close()  # else the end of the child would not close the pipe
    return _Rank(number, process, ours, stacks)


def _start(ranks: list[_Rank]) -> None:
    """Let all ranks begin, after the last was forked.

    A first rank that joins makes the store's thread here ask glibc for its name, under a lock. A rank that is forked
    in that moment inherits the lock, with nobody to open it, and waits for it forever when it joins: 1 in 1,000.
    """
    for rank in ranks:
        with suppress(BrokenPipeError):  # it died: reading its result will tell
            rank.pipe.send_bytes(b"")


def _child(
    pipe: Connection,
    environment: dict[str, str],
    stacks: Path,
    init: bool,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    """The whole life of a rank. A process group of its own lets the parent end it together with its data workers."""
    # what the parent left behind is not collected here: a store's destructor would wait for a thread that did not fork
    gc.freeze()
    os.setpgid(0, 0)
    with suppress(OSError, AttributeError):  # Linux: a test run that is killed takes its ranks with it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with stacks.open("w") as file:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        os.environ.update(environment)
        torch.set_num_threads(1)
        random.seed(0)
        torch.manual_seed(0)
        try:
            pipe.recv_bytes()  # all are forked
            if init:
                dist.init_process_group("gloo")
            pipe.send_bytes(pickle.dumps(function(*args)))
            pipe.recv_bytes()  # the others may still be reading what this rank sent them
        except BaseException as error:
            pipe.send_bytes(_failure(error))
        finally:
            faulthandler.unregister(signal.SIGUSR1)


def _failure(error: BaseException) -> bytes:
    """The exception, its traceback and the time, pickled; its text alone where it cannot be pickled and read back."""
    now, text = time.monotonic(), traceback.format_exc()
    try:
        payload = pickle.dumps(_Failure(error, text, now))
        pickle.loads(payload)
    except Exception:
        payload = pickle.dumps(_Failure(RuntimeError(f"{type(error).__name__}: {error}"), text, now))
    return payload


def _collect(ranks: list[_Rank], timeout: float, all_of_them: bool) -> None:
    """Read results as they arrive, until all have come or the time is up; a first failure leaves the grace period."""
    deadline = time.monotonic() + timeout
    while waiting := [rank for rank in ranks if not rank.done]:
        arrived = wait([rank.pipe for rank in waiting], timeout=max(0.0, deadline - time.monotonic()))
        if not arrived:
            return
        for rank in waiting:
            if rank.pipe in arrived:
                _read(rank)
        if not all_of_them and any(rank.error is not None for rank in ranks):
            deadline = min(deadline, time.monotonic() + _GRACE_S)


def _read(rank: _Rank) -> None:
    rank.done = True
    try:
        answer = pickle.loads(rank.pipe.recv_bytes())
    except (EOFError, ConnectionResetError):
        rank.process.join()
        rank.error = RankError(
            f"rank {rank.number} {_ending(rank.process.exitcode)} before it had a result", rank.number
        )
        return
    if isinstance(answer, _Failure):
        raised = f"rank {rank.number} raised {type(answer.exception).__name__}: {answer.exception}"
        rank.error = RankError(f"{raised}\n\n{answer.text}", rank.number, answer.exception)
        rank.failed_at = answer.when
    else:
        rank.result = answer


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"exited with status {code}"


def _silence(silent: list[_Rank], ranks: list[_Rank], timeout: float) -> RankError:
    """The error of ranks that never answered: their numbers, and the stacks that they write when asked."""
    for rank in silent:
        with suppress(ProcessLookupError):
            os.kill(rank.process.pid, signal.SIGUSR1)
    deadline = time.monotonic() + _STACKS_S
    while time.monotonic() < deadline and not all(
        rank.stacks.exists() and rank.stacks.stat().st_size for rank in silent
    ):
        wait([rank.pipe for rank in silent], timeout=0.02)
    numbers = [rank.number for rank in silent]
    who = f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {', '.join(map(str, numbers))}"
    answered = len(ranks) - len(silent)
    lines = [f"{who} of {len(ranks)} gave no result within {timeout:g} s ({answered} did) and had to be ended."]
    lines += [str(rank.error).splitlines()[0] for rank in ranks if rank.error is not None]
    for rank in silent:
        lines += [
            f"rank {rank.number} stood at:",
            rank.stacks.read_text() if rank.stacks.exists() else "(it never started)",
        ]
    return RankError("\n".join(lines), numbers[0])


def _end(ranks: list[_Rank]) -> None:
    """Let ranks that have answered leave; end the others, with the data workers that each may have started."""
    for rank in ranks:
        if rank.done and rank.error is None:
            with suppress(BrokenPipeError):
                rank.pipe.send_bytes(b"")
    for rank in ranks:
        if rank.done:
            rank.process.join(timeout=5)
        if rank.process.is_alive():
            for end in (os.killpg, os.kill):
                with suppress(ProcessLookupError, PermissionError):
                    end(rank.process.pid, signal.SIGKILL)
        rank.process.join()
        rank.process.close()
        rank.pipe.close()
