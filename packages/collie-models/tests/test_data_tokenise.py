"""Tokenising in several processes: the same table in the same order, errors name their rows, nothing is left behind."""

import io
import multiprocessing
import os
import signal
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pytest
from data_toys import byte_tokenizer
from datasets import Dataset

from collie.data import _pool, _tokenise
from collie.data._build import Chunk, TableBuilder
from collie.data._encode import TextEncoder
from collie.data._rows import Encoded, Refused, Tokens
from collie.data._tokenise import tokenised
from collie.interfaces import ConfigError, DataError

ROWS = 3000  # twelve tasks, the last of which is not full


@dataclass
class Digits:
    """A row {"n"} becomes n tokens, or what `special` says: rows of all kinds that a table has to keep."""

    special: dict = field(default_factory=dict)
    pids: str = ""

    def fingerprint(self):
        return f"digits {sorted(self.special)}"

    def encode(self, rows, indices):
        if self.pids:
            with open(self.pids, "a") as file:
                file.write(f"{os.getpid()}\n")
        return [self._one(row["n"], index) for row, index in zip(rows, indices, strict=True)]

    def _one(self, n, index):
        action = self.special.get(index)
        if callable(action):
            action()
        length = n % 7 + 2
        ids = [n, *range(length - 1)]
        labels = [-100, *ids[1:]]
        if action == "refuse":
            return Refused(index, f"row {index} is refused")
        if action == "mask":
            return Encoded(Tokens(ids, [0] + [1] * (length - 1), labels), {}, length)
        if action == "labels":
            return Encoded(Tokens(ids, [1] * length, [9] * length), {}, length)
        extra = {"id": f"行 {n}", "list": [n, {"n": None}]} if action == "extra" else {}
        return Encoded(Tokens(ids, [1] * length, labels), extra, length + n % 3, inside_turn=n % 5 == 0)


def _rows(count=ROWS):
    return [{"n": n} for n in range(count)]


def _same(table, other):
    assert [table.row(i) for i in range(len(table))] == [other.row(i) for i in range(len(other))]
    assert table.uncut.tolist() == other.uncut.tolist() and table.inside_turn.tolist() == other.inside_turn.tolist()
    assert list(table.refused) == list(other.refused)
    assert table.target_counts().tolist() == other.target_counts().tolist()


@pytest.mark.parametrize("special", [{}, {0: "extra", 700: "mask", 701: "labels", 702: "refuse", 2999: "refuse"}])
@pytest.mark.parametrize("kind", [list, iter, Dataset.from_list], ids=["list", "iterator", "datasets"])
def test_processes_make_the_same_table(kind, special):
    """Whatever the rows are in, and also where they finish out of order."""
    encoder, told = Digits({**special, 10: lambda: time.sleep(0.2)}), []
    one = tokenised(_rows(), encoder, processes=1)
    table = tokenised(kind(_rows()), encoder, processes=3, on_refused=told.append)
    _same(table, one)
    assert len(table) == ROWS - len(told) and told == list(table.refused)
    assert table.row(1) == {"input_ids": [1, 0, 1], "attention_mask": [1, 1, 1], "labels": [-100, 0, 1]}
    if special:
        assert [refused.index for refused in told] == [702, 2999]
        assert table.row(0)["id"] == "行 0" and table.row(0)["list"] == [0, {"n": None}] and "id" not in table.row(1)
        assert table.row(700)["attention_mask"] == [0, 1] and table.row(701)["labels"] == [9, 9, 9]
        assert table.row(699)["attention_mask"] == [1] * 8 and table.row(702)["input_ids"][0] == 703
    assert "labels" in table.columns if special else set(table.columns) == {"input_ids", "targets"}


def test_the_work_is_done_by_other_processes(tmp_path):
    tokenised(_rows(), Digits(pids=str(tmp_path / "many")), processes=3)
    pids = set((tmp_path / "many").read_text().split())
    assert len(pids) == 3 and str(os.getpid()) not in pids
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("rows", "processes"), [(ROWS, 1), (300, 3)])
def test_few_rows_or_one_process_are_done_here(tmp_path, rows, processes):
    tokenised(_rows(rows), Digits(pids=str(tmp_path / "here")), processes=processes)
    assert set((tmp_path / "here").read_text().split()) == {str(os.getpid())}


def test_a_daemonic_process_works_alone():
    """It may have no children: multiprocessing says so by an AssertionError."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def child():
        queue.put(len(tokenised(_rows(), Digits(), processes=2)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = context.Process(target=child, daemon=True)
        process.start()
    process.join(30)
    assert process.exitcode == 0 and queue.get() == ROWS


def test_how_many_processes(monkeypatch):
    """A share of the CPUs where all ranks of a node tokenise, all where one does it for the others."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert (_tokenise._cpus(shared=True), _tokenise._cpus(shared=False)) == (8, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert (_tokenise._cpus(shared=True), _tokenise._cpus(shared=False)) == (2, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert _tokenise._cpus(shared=True) == 1
    with pytest.raises(DataError, match="processes=0: at least 1"):
        tokenised([], Digits(), processes=0)


def _raise(error):
    raise error


@pytest.mark.parametrize("processes", [1, 3])
def test_an_error_names_its_rows(processes):
    with pytest.raises(DataError, match=r"^rows 768 to 1023 cannot be tokenised: ZeroDivisionError: no$") as caught:
        tokenised(_rows(), Digits({800: lambda: _raise(ZeroDivisionError("no"))}), processes=processes)
    assert "_raise(ZeroDivisionError" in str(caught.value.__cause__) or processes == 1  # the worker's own traceback
    with pytest.raises(ConfigError, match=r"^mine$"):
        tokenised(_rows(), Digits({800: lambda: _raise(ConfigError("mine"))}), processes=processes)
    assert not multiprocessing.active_children()


def test_an_error_that_cannot_be_pickled():
    class Local(Exception):
        pass

    with pytest.raises(DataError, match=r"rows 768 to 1023 cannot be tokenised: .*Local: no"):
        tokenised(_rows(), Digits({800: lambda: _raise(Local("no"))}), processes=2)


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was ended by SIGKILL, as the kernel does where memory runs"),
        (lambda: os._exit(3), "exited with status 3"),
    ],
)
def test_a_process_that_dies_names_its_rows(end, how):
    with pytest.raises(DataError, match=f"^rows 768 to 1023: the process that tokenised them {how}"):
        tokenised(_rows(), Digits({800: end}), processes=2)
    assert not multiprocessing.active_children()


def test_what_on_refused_raises_ends_the_work(tmp_path):
    def refuse(refused):
        raise DataError(refused.reason)

    encoder = Digits({0: "refuse", 2999: "refuse"}, pids=str(tmp_path / "tasks"))
    with pytest.raises(DataError, match=r"^row 0 is refused$"):
        tokenised(iter(_rows(20000)), encoder, processes=2, on_refused=refuse)
    assert not multiprocessing.active_children()
    assert len((tmp_path / "tasks").read_text().split()) < 40  # of 79


def test_the_first_bad_row_is_the_one_that_is_told_of():
    """Also where a later one is met before it."""
    special = {0: lambda: time.sleep(0.3), 5: "refuse", 300: lambda: _raise(ConfigError("later"))}
    told = []
    with pytest.raises(ConfigError, match="later"):
        tokenised(_rows(), Digits(special), processes=2, on_refused=told.append)
    assert [refused.index for refused in told] == [5]


def test_rows_are_read_no_faster_than_they_are_needed():
    """One slow task does not let the others read a stream to its end."""
    read = []

    def stream():
        for row in _rows(20000):
            read.append(row["n"])
            yield row

    seen = []
    encoder = Digits({0: lambda: time.sleep(0.5), 1: lambda: seen.append(0)})
    results = _pool.in_order(lambda task: encoder.encode(task.rows, task.indices), _tokenise._tasks(stream()), 2, str)
    next(results)
    assert len(read) <= 256 * (_pool._AHEAD * 2 + 1)
    results.close()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(tmp_path, signal_number):
    """Ctrl+C, which reaches all of them, and the death of the one that started the others."""
    pids = tmp_path / "pids"
    encoder = Digits({i: lambda: time.sleep(0.3) for i in range(0, 20000, 256)}, pids=str(pids))
    parent = os.fork()
    if parent == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            tokenised(_rows(20000), encoder, processes=2)
        except KeyboardInterrupt:
            code = 7
        finally:
            os._exit(code)
    _until(lambda: pids.exists() and len(set(pids.read_text().split())) == 2)
    if signal_number == signal.SIGINT:
        os.killpg(parent, signal.SIGINT)
    else:
        os.kill(parent, signal.SIGKILL)
    _, status = os.waitpid(parent, 0)
    assert os.waitstatus_to_exitcode(status) == (7 if signal_number == signal.SIGINT else -signal.SIGKILL)
    _until(lambda: not _alive(set(pids.read_text().split())))


def _until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _alive(pids):
    alive = []
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/stat") as file:
            if file.read().rsplit(")", 1)[1].split()[0] != "Z":  # a zombie waits for whoever adopts it here
                alive.append(pid)
    return alive


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("kind", [list, iter])
def test_the_bar(monkeypatch, kind):
    """On a terminal alone, and counting rows."""
    terminal, file = _Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    tokenised(kind(_rows()), Digits(), processes=2, progress="corpus")
    assert "corpus: " in terminal.getvalue() and "3000" in terminal.getvalue().split("\r")[-1]
    assert ("3000/3000" in terminal.getvalue()) == (kind is list)
    terminal.truncate(0)
    tokenised(_rows(), Digits(), processes=2)
    monkeypatch.setattr(sys, "stderr", file)
    tokenised(_rows(), Digits(), processes=2, progress="corpus")
    assert terminal.getvalue() == file.getvalue() == ""


def test_columns_in_files_and_in_memory_are_alike(tmp_path):
    encoder = Digits({3: "extra", 9: "mask", 11: "refuse"})
    chunks = [encoder.encode(_rows(20)[a:b], range(a, b)) for a, b in ((0, 8), (8, 8), (8, 20))]
    tables = []
    for folder in (None, tmp_path):
        with TableBuilder(folder) as builder:
            for chunk in chunks:
                builder.add(Chunk.of(chunk, as_json=folder is not None))
            tables.append(builder.finish())
    _same(*tables)
    assert len(tables[0]) == 19 and np.array_equal(tables[0].lengths, np.diff(tables[0].offsets))
    empty = TableBuilder().finish()
    assert len(empty) == 0 and empty.target_counts().tolist() == []


def test_a_fast_tokenizer_is_called_as_it_calls_itself():
    """Its backend gives its ids without its detours; not where settings of an earlier call are left in it."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    encoder = TextEncoder(tokenizer, add_special_tokens=True)
    texts = ["a b c", "", "d </s> e", "a" * 50]
    expected = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert encoder.ids(texts) == expected and encoder.ids([]) == []
    plain = encoder.fingerprint()
    for split in (False, True):
        tokenizer.split_special_tokens = split
        expected = tokenizer(texts, add_special_tokens=False)["input_ids"]
        tokenizer(["a b c d"], truncation=True, max_length=2, padding="max_length")
        assert tokenizer.backend_tokenizer.truncation is not None
        assert (encoder.fingerprint() == plain) is not split, "a tokenizer that splits special tokens is another one"
        assert encoder.ids(texts) == expected == encoder.ids(texts)
