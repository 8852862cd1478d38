"""The reader: whole lines only, incremental, and it counts what it could not use."""

import json
from pathlib import Path

from collie.events import EventReader, Log

SAMPLE = (Path(__file__).parent / "data" / "events-1.0.jsonl").read_bytes()


def log(seq: int, **changes) -> bytes:
    values = {"v": "1.0", "seq": seq, "t": 1.0, "rank": 0, "attempt": 0, "kind": "log", "step": None}
    return json.dumps(values | {"level": "info", "message": str(seq)} | changes).encode() + b"\n"


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_a_line_is_read_once_it_is_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert reader.read() == []  # not there yet
    whole, half = log(0) + log(1), log(2)
    append(path, whole + half[:17])
    assert [r.seq for r in reader.read()] == [0, 1]
    assert reader.read() == []
    append(path, half[17:])
    assert [r.seq for r in reader.read()] == [2]
    assert (reader.bad_lines, reader.gaps) == (0, 0)


def test_any_cut_gives_the_same_records(tmp_path):
    """Read byte by byte, the sample gives what it gives at once; no line is lost, doubled or called bad."""
    path = tmp_path / "events.jsonl"
    reader, records = EventReader(path), []
    for start in range(0, len(SAMPLE), 7):
        append(path, SAMPLE[start : start + 7])
        records += reader.read()
    assert [r.seq for r in records] == list(range(12))
    assert reader.bad_lines == 0


def test_a_limit_leaves_the_rest_for_later(tmp_path):
    path = tmp_path / "events.jsonl"
    append(path, SAMPLE)
    reader = EventReader(path)
    assert [[r.seq for r in reader.read(limit=4)] for _ in range(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], []]


def test_what_is_missing_in_the_sequence_is_counted(tmp_path):
    path = tmp_path / "events.jsonl"
    append(path, log(4) + log(5) + log(9) + log(10) + log(12))
    reader = EventReader(path)
    assert len(reader.read()) == 5
    assert reader.gaps == 4  # 6, 7, 8 and 11; a file may begin anywhere


def test_a_bad_line_is_counted_once_and_passed_over(tmp_path):
    path = tmp_path / "events.jsonl"
    append(path, log(0) + b'{"torn\n' + b"\xff\xfe\n" + b"\n" + log(3))
    reader = EventReader(path)
    assert [r.seq for r in reader.read()] == [0, 3]
    assert (reader.bad_lines, reader.gaps) == (2, 0)
    assert reader.last_error


def test_unknown_kinds_are_neither_bad_nor_gaps(tmp_path):
    path = tmp_path / "events.jsonl"
    append(path, log(0) + log(1, kind="hologram") + log(2, v="1.9", extra=[1]))
    reader = EventReader(path)
    assert [r.event for r in reader.read()] == [Log("info", "0"), Log("info", "2")]
    assert (reader.bad_lines, reader.gaps) == (0, 0)


def test_another_major_version_is_not_guessed_at(tmp_path):
    path = tmp_path / "events.jsonl"
    append(path, log(0, v="2.0"))
    reader = EventReader(path)
    assert reader.read() == [] and reader.bad_lines == 1 and "2.0" in reader.last_error


def test_a_replaced_file_is_read_from_its_beginning(tmp_path):
    path = tmp_path / "events.jsonl"
    append(path, log(0) + log(1))
    reader = EventReader(path)
    reader.read()
    path.write_bytes(log(0, message="new"))
    assert [r.event.message for r in reader.read()] == ["new"]
    assert reader.gaps == 0


def test_a_writer_that_begins_again_in_the_same_file_leaves_no_gap(tmp_path):
    path = tmp_path / "events.jsonl"
    append(path, log(0) + log(1) + log(0) + log(1))
    reader = EventReader(path)
    assert len(reader.read()) == 4 and reader.gaps == 0
