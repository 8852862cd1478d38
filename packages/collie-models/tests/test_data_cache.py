"""The cache of tokens: made once by whoever comes first, mapped by the others, and never a reason to fail."""

import errno
import fcntl
import json
import logging
import os
import pickle
import signal
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.numpy import save_file

from collie.data import _cache, _content
from collie.data._build import Chunk, TableBuilder
from collie.data._content import content_of
from collie.data._rows import Encoded, Refused, Tokens
from collie.data._table import TokenTable
from collie.data._tokenise import tokenised
from collie.interfaces import DataError
from collie.testing import run_ranks


@dataclass
class Counting:
    """Encodes {"n"} as two tokens and the extra that `extra` makes of it; writes a line to `calls` for each call."""

    calls: Path
    version: str = "1"
    refuse: frozenset = frozenset()
    extra: object = field(default=lambda n: {"id": n, "names": [f"{n}", None]} if n % 2 else {})
    wait: float = 0.0

    def fingerprint(self):
        return self.version

    def encode(self, rows, indices):
        with self.calls.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(self.wait)
        return [
            Refused(i, f"row {i} is refused")
            if i in self.refuse
            else Encoded(Tokens([row["n"], 7], [1, 1], [-100, 7]), self.extra(row["n"]), 5, i == 0)
            for row, i in zip(rows, indices, strict=True)
        ]

    @property
    def count(self):
        return len(self.calls.read_text().split()) if self.calls.exists() else 0


ROWS = [{"n": n} for n in range(600)]  # three calls


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLIE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "datasets"


@pytest.fixture
def encoder(tmp_path):
    return Counting(tmp_path / "calls")


def _rows_of(table):
    return [table.row(i) for i in range(len(table))]


def _entries(cache):
    return sorted(path.name for path in cache.iterdir())


def test_the_second_time_nothing_is_read(encoder, cache):
    """Rows, extras, lengths and refusals are those of the first time; they lie in a mapped file."""
    encoder.refuse, told = frozenset({3, 599}), []
    first = tokenised(ROWS, encoder, content="c", processes=1, on_refused=told.append)

    def nothing():
        raise AssertionError("was read")
        yield

    second = tokenised(nothing(), encoder, content="c", on_refused=told.append)
    assert encoder.count == 3 and _rows_of(first) == _rows_of(second)
    assert second.row(1) == {
        "input_ids": [1, 7],
        "attention_mask": [1, 1],
        "labels": [-100, 7],
        "id": 1,
        "names": ["1", None],
    }
    assert second.uncut.tolist() == [5] * 598 and second.inside_turn.nonzero()[0].tolist() == [0]
    assert [refused.index for refused in told] == [3, 599, 3, 599] and list(second.refused) == told[2:]
    assert not second.columns["input_ids"].flags.writeable and not first.columns["input_ids"].flags.writeable
    assert _rows_of(second) == _rows_of(tokenised(ROWS, encoder, processes=1))  # as without a cache


def test_other_rows_or_another_encoder_are_another_entry(encoder, cache):
    for content, version in (("a", "1"), ("b", "1"), ("a", "2"), ("a", "1")):
        encoder.version = version
        tokenised(ROWS[:4], encoder, content=content)
    assert encoder.count == 3 and len(_entries(cache)) == 3


def test_the_cache_is_private_and_holds_nothing_else(encoder, cache):
    tokenised(ROWS, encoder, content="c", processes=2)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    [entry] = _entries(cache)
    assert stat.S_IMODE((cache / entry).stat().st_mode) == 0o700
    assert [path.name for path in (cache / entry).iterdir()] == ["collie-dataset.safetensors"]


def test_without_a_variable_it_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("COLLIE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _cache.cache_folder() == tmp_path / ".cache" / "collie" / "datasets"


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-3],
        lambda whole: whole[:20],
        lambda whole: b"",
        lambda whole: os.urandom(len(whole)),
        lambda whole: whole.replace(b"collie-dataset-2", b"collie-dataset-9"),
        lambda whole: whole.replace(b'"I32"', b'"X32"'),
        lambda whole: whole.replace((1200).to_bytes(8, "little"), (1300).to_bytes(8, "little")),
    ],
)
def test_a_damaged_entry_is_made_anew(encoder, cache, caplog, damage):
    rows = _rows_of(tokenised(ROWS, encoder, content="c", processes=1))
    [file] = cache.rglob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    assert _rows_of(tokenised(ROWS, encoder, content="c", processes=1)) == rows
    assert encoder.count == 6 and "damaged and is made anew" in caplog.text
    caplog.clear()
    tokenised(ROWS, encoder, content="c")
    assert encoder.count == 6 and not caplog.text
    assert len(_entries(cache)) == 1


def test_processes_that_come_together_tokenise_once(encoder, cache):
    """They need no process group; whoever comes first works."""
    encoder.wait = 0.1
    tables = run_ranks(4, lambda: _rows_of(tokenised(ROWS, encoder, content="c", processes=1)))
    assert encoder.count == 3 and all(table == tables[0] for table in tables) and len(tables[0]) == 600
    assert len(_entries(cache)) == 1


def test_many_that_come_together_leave_one_entry_and_no_lock(encoder, cache):
    """Each removes its lock's file, which others are waiting at."""

    def ask():
        return [len(tokenised(ROWS[:2], encoder, content=f"c{i}", processes=1)) for i in range(20)]

    assert run_ranks(4, ask) == [[2] * 20] * 4
    assert encoder.count == 20 and len(_entries(cache)) == 20


def test_another_takes_over_from_one_that_was_killed(encoder, cache):
    """Its lock ends with it, and what it left is swept."""
    encoder.wait = 0.3
    child = os.fork()
    if child == 0:
        tokenised(ROWS, encoder, content="c", processes=1)
        os._exit(0)
    deadline = time.monotonic() + 20
    while encoder.count < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    left = _entries(cache)
    assert len(left) == 2 and left[0].startswith(".") and left[1].endswith(".lock")
    assert len(tokenised(ROWS, encoder, content="c", processes=1)) == 600
    assert _entries(cache) == [left[1].removesuffix(".lock")]


def test_an_error_leaves_nothing(encoder, cache):
    def refuse(refused):
        raise DataError(refused.reason)

    encoder.refuse = frozenset({300})
    for _ in range(2):
        with pytest.raises(DataError, match="row 300 is refused"):
            tokenised(ROWS, encoder, content="c", on_refused=refuse)
        assert _entries(cache) == []
    assert len(tokenised(ROWS, encoder, content="c")) == 599
    with pytest.raises(DataError, match="row 300 is refused"):  # though the tokens are there
        tokenised(ROWS, encoder, content="c", on_refused=refuse)


def test_a_cache_that_cannot_be_written_to(encoder, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COLLIE_CACHE", str(tmp_path / "file"))
    told = []
    encoder.refuse = frozenset({1})
    table = tokenised(iter(ROWS), encoder, content="c", on_refused=told.append)  # nothing of it was read in vain
    assert len(table) == 599 and "cannot be kept in the cache, and are made in memory" in caplog.text


def test_a_disk_that_fills_up(encoder, cache, monkeypatch, caplog):
    add, told = TableBuilder.add, []

    def full(self, chunk):
        if self._folder is not None and self._input_ids.length > 256:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, chunk)

    monkeypatch.setattr(TableBuilder, "add", full)
    encoder.refuse = frozenset({1, 500})
    table = tokenised(ROWS, encoder, content="c", on_refused=told.append)
    assert len(table) == 598 and "No space left on device" in caplog.text and _entries(cache) == []
    assert [refused.index for refused in told] == [1, 500]  # each of them once
    with pytest.raises(DataError, match=r"cannot be kept in the cache: .*No space left.*Tokenise without a cache"):
        tokenised(iter(ROWS), encoder, content="c")


def test_fields_that_json_cannot_hold_are_kept_in_memory(encoder, cache, caplog):
    encoder.extra = lambda n: {"thing": object} if n == 400 else {"tensor": torch.tensor([n])}
    for processes in (1, 2):
        table = tokenised(ROWS * 2, encoder, content="c", processes=processes)
        assert table.row(400)["thing"] is object and "a type cannot be saved" in caplog.text
        assert torch.equal(table.row(2)["tensor"], torch.tensor([2])) and _entries(cache) == []


def test_a_file_system_without_locks(encoder, cache, monkeypatch, caplog):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        assert len(tokenised(ROWS, encoder, content="c")) == 600
    assert encoder.count == 3 and "has no file locks" in caplog.text
    encoder.version, encoder.wait = "2", 0.05
    tables = run_ranks(3, lambda: len(tokenised(ROWS, encoder, content="c", processes=1)))
    assert tables == [600] * 3 and len(_entries(cache)) == 2


def test_content_of_rows():
    rows = [{"text": "a", "n": [1, 2.5, None, True]}, {"text": "b"}]
    again = [{"te" + "xt": "".join(["a"]), "n": [1, 2.5, None, True]}, {"text": "b"}]
    assert content_of(rows) == content_of(again) == content_of(json.loads(json.dumps(rows))) is not None
    others = [rows[:1], rows[::-1], [{**rows[0], "n": [1, 2.5, None, 1]}, rows[1]], [{"text": "a"}, {"text": "b"}]]
    assert len({content_of(other) for other in [rows, *others]}) == 5
    assert content_of(rows * 2000) != content_of(rows * 2001)
    cyclic = [1]
    cyclic.append(cyclic)
    for unknown in ([np.zeros(2)], [{"a": torch.zeros(2)}], [object()], [cyclic], (row for row in rows), 3):
        assert content_of(unknown) is None


def test_content_of_a_dataset():
    one, same, other = (Dataset.from_list([{"text": text}]) for text in "aab")
    assert content_of(one) == content_of(same) != content_of(other)
    assert content_of(one.map(lambda row: {"text": row["text"] + "x"})) != content_of(one)
    assert content_of(one.to_iterable_dataset()) is None


def test_content_of_a_file(tmp_path, monkeypatch):
    """A large one is not read again while it stays as it is; one that was only just written is not trusted."""
    path, read = tmp_path / "rows.jsonl", []
    digest = _content.hashlib.file_digest
    monkeypatch.setattr(_content.hashlib, "file_digest", lambda file, name: read.append(1) or digest(file, name))
    monkeypatch.setattr(_content, "_LARGE", 4)
    path.write_text("rows 1")
    first = content_of(path)
    assert content_of(str(path)) == first and len(read) == 2
    monkeypatch.setattr(_content, "_REST_NS", 0)
    time.sleep(0.02)
    assert content_of(path) == content_of(path) == first and len(read) == 3
    times = path.stat()
    path.write_text("rows 2")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # of the same size and time, and yet another
    second = content_of(path)
    assert second != first and len(read) == 4
    other = tmp_path / "copy.jsonl"
    other.write_text("rows 2")
    assert content_of(other) == second  # by its bytes, wherever it lies
    assert content_of(tmp_path) is None and content_of(tmp_path / "none") is None


def test_a_forked_worker_takes_no_memory_of_its_own(tmp_path):
    """Nor does a table that is pickled for a spawned one: it travels as a file's name."""
    rows = 100_000
    columns = {"input_ids": np.arange(rows * 100, dtype=np.int32), "targets": np.ones(rows * 100, dtype=bool)}
    table = TokenTable(columns, np.arange(rows + 1) * 100, [{"id": n, "text": "x" * 100} for n in range(rows)])
    table.save(tmp_path)
    loaded = TokenTable.load(tmp_path, mapped=True)
    assert len(pickle.dumps(loaded)) < 1000
    assert pickle.loads(pickle.dumps(loaded)).row(99_999) == table.row(99_999)

    def worker():
        before = _own()
        for number in range(0, rows, 7):
            loaded.row(number)
        return _own() - before

    assert run_ranks(1, worker)[0] < 10e6  # of 65 MB that the file has
    table.save(tmp_path)
    with pytest.raises(DataError, match="was replaced or removed while it was in use"):
        pickle.loads(pickle.dumps(loaded))


def _own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def test_any_reader_of_safetensors_reads_it(tmp_path):
    table = TokenTable(
        {"input_ids": np.array([4, 5, 6], np.int32), "targets": np.array([False, True, True])},
        np.array([0, 1, 3]),
        [{}, {"id": "é"}],
        refused=[Refused(7, "row 7 is bad")],
    )
    table.save(tmp_path, np.array([1, 0, 1]))
    with safe_open(tmp_path / "collie-dataset.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "collie-dataset-2"}
        assert file.get_tensor("input_ids").tolist() == [5, 6, 4, 5, 6]
        assert file.get_tensor("targets").tolist() == [True, True, False, True, True]
        assert file.get_tensor("extras").tobytes().decode() == '{"id": "é"}' * 2
    loaded = TokenTable.load(tmp_path)
    assert _rows_of(loaded) == [table.row(i) for i in (1, 0, 1)] and loaded.columns["input_ids"].flags.writeable
    assert list(loaded.refused) == [Refused(7, "row 7 is bad")]


@pytest.mark.parametrize("mapped", [False, True])
def test_files_of_the_first_format_are_read(tmp_path, mapped):
    extras = np.frombuffer(json.dumps([{"id": "a"}, {}]).encode(), dtype=np.uint8)
    columns = {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 0], "labels": [-100, 2, 9]}
    arrays = {name: np.array(values, dtype=np.int32) for name, values in columns.items()}
    arrays |= {"offsets": np.array([0, 1, 3]), "extras": extras}
    save_file(arrays, tmp_path / "collie-dataset.safetensors", metadata={"format": "collie-dataset-1"})
    table = TokenTable.load(tmp_path, mapped=mapped)
    assert table.row(0) == {"input_ids": [1], "attention_mask": [1], "labels": [-100], "id": "a"}
    assert table.row(1) == {"input_ids": [2, 3], "attention_mask": [1, 0], "labels": [2, 9]}
    assert table.uncut.tolist() == [1, 2] and table.target_counts().tolist() == [0, 2]


def test_target_counts_of_empty_rows():
    """reduceat gives an empty row the element at which it would begin."""
    results = [Encoded(Tokens(ids, [1] * len(ids), ids), {}, len(ids)) for ids in ([], [1, 2], [], [3], [])]
    builder = TableBuilder()
    builder.add(Chunk.of(results))
    assert builder.finish().target_counts().tolist() == [0, 2, 0, 1, 0]


def test_the_log_says_what_is_done(encoder, caplog):
    caplog.set_level(logging.INFO)
    tokenised(ROWS, encoder, content="c")
    tokenised(ROWS, encoder, content="c")
    assert caplog.text.count("Tokens are mapped from") == 1
