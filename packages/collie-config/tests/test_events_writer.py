"""The writer: complete, ordered, private, and never in the way of the training."""

import json
import os
import stat
import subprocess
import sys
import threading
import time

import pytest

from collie.events import Alert, Bye, EventReader, EventWriter, Hello, Log, Metric, NullWriter, Sample, Step
from collie.events import _writer as module


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


class Gate:
    """A disk that takes nothing until it is opened."""

    def __init__(self, monkeypatch):
        self.open = threading.Event()
        self.reached = threading.Event()
        self._write = os.write
        monkeypatch.setattr(module.os, "write", self)

    def __call__(self, descriptor, data):
        self.reached.set()
        assert self.open.wait(20)
        return self._write(descriptor, data)


@pytest.fixture
def gate(monkeypatch):
    return Gate(monkeypatch)


def stuck_writer(tmp_path, gate, capacity):
    """A writer whose thread hangs in writing its first event, so that all others stay in the queue."""
    writer = EventWriter(tmp_path, 0, capacity=capacity)
    writer.write(Log("info", "first"))
    assert gate.reached.wait(10)
    return writer


def test_events_come_in_order_with_their_envelope(tmp_path):
    before = time.time()
    with EventWriter(tmp_path / "events", 12, attempt=3) as writer:
        for step in range(500):
            writer.write(Step(1.0, 0.1, 8, 0.5), step=step)
        writer.write(Bye("finished"))
    assert writer.path.name == "rank-00012.a3.jsonl"
    found = lines(writer.path)
    assert [line["seq"] for line in found] == list(range(501))
    assert [line["step"] for line in found] == [*range(500), None]
    assert {(line["v"], line["rank"], line["attempt"]) for line in found} == {("1.0", 12, 3)}
    assert before <= found[0]["t"] <= found[-1]["t"] <= time.time()
    assert writer.dropped == 0


def test_several_threads_may_write(tmp_path):
    with EventWriter(tmp_path, 0) as writer:
        threads = [
            threading.Thread(target=lambda name: [writer.write(Metric(name, i)) for i in range(200)], args=(str(n),))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = lines(writer.path)
    assert [line["seq"] for line in found] == list(range(800))
    for n in range(4):
        assert [line["value"] for line in found if line["name"] == str(n)] == list(range(200))


def test_an_event_is_written_as_it_was_when_it_came(tmp_path):
    versions = {"torch": "1"}
    with EventWriter(tmp_path, 0) as writer:
        writer.write(Hello("h", 1, None, 1, 0, 0, 0, 1, 1, 1, "cpu", versions))
        versions["torch"] = "2"
    assert lines(writer.path)[0]["versions"] == {"torch": "1"}


def test_the_file_and_its_folder_are_private(tmp_path):
    with EventWriter(tmp_path / "events", 0) as writer:
        writer.write(Log("info", "x"))
    assert stat.S_IMODE(writer.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(writer.path.parent.stat().st_mode) == 0o700


def test_a_group_readable_folder_has_group_readable_files(tmp_path):
    tmp_path.chmod(0o750)
    with EventWriter(tmp_path, 0) as writer:
        writer.write(Log("info", "x"))
    assert stat.S_IMODE(writer.path.stat().st_mode) == 0o640


def test_no_thread_and_no_file_before_the_first_event(tmp_path):
    threads = threading.active_count()
    writer = EventWriter(tmp_path, 0)
    assert threading.active_count() == threads and not writer.path.exists()
    writer.close()
    assert not writer.path.exists()


@pytest.mark.parametrize("kind", ["metric", "sample", "log"])
def test_samples_of_a_rank_give_way_to_steps(tmp_path, gate, kind):
    """With room for four, four samples and then four steps leave the four steps, and the loss is told."""
    sample = {"metric": Metric("loss", 1.0), "sample": Sample("a", "b"), "log": Log("info", "x")}[kind]
    writer = stuck_writer(tmp_path, gate, capacity=4)
    for _ in range(4):
        writer.write(sample)
    for step in range(4):
        writer.write(Step(1.0, 0.1, 8, 0.5), step=step)
    writer.write(sample)  # and a sample never puts out a step
    assert writer.dropped == 5
    gate.open.set()
    writer.close()
    found = lines(writer.path)
    assert [line["kind"] for line in found] == ["log", "step", "step", "step", "step", "alert"]
    assert [line["step"] for line in found[1:5]] == [0, 1, 2, 3]
    assert found[-1]["code"] == "events_dropped" and found[-1]["message"].startswith("5 events were dropped")


def test_steps_give_way_to_what_is_rare(tmp_path, gate):
    """Bye and alert put out the oldest step; a queue of only such events refuses one more."""
    writer = stuck_writer(tmp_path, gate, capacity=2)
    writer.write(Step(1.0, 0.1, 8, 0.5), step=0)
    writer.write(Step(1.0, 0.1, 8, 0.5), step=1)
    writer.write(Alert("error", "nan_loss", "The loss is nan."))
    writer.write(Bye("failed"))
    writer.write(Alert("error", "late", "One too many."))
    gate.open.set()
    writer.close()
    found = lines(writer.path)
    assert [line.get("code", line["kind"]) for line in found] == ["log", "nan_loss", "bye", "events_dropped"]
    assert writer.dropped == 3


def test_what_was_dropped_is_a_gap_for_the_reader(tmp_path, gate):
    writer = stuck_writer(tmp_path, gate, capacity=10)
    for step in range(30):
        writer.write(Step(1.0, 0.1, 8, 0.5), step=step)
    gate.open.set()
    writer.close()
    reader = EventReader(writer.path)
    records = reader.read()
    assert [r.step for r in records if isinstance(r.event, Step)] == list(range(20, 30))
    assert reader.gaps == writer.dropped == 20


def test_writing_does_not_wait_for_the_disk(tmp_path, gate):
    writer = stuck_writer(tmp_path, gate, capacity=50)
    before = time.perf_counter()
    for step in range(1000):
        writer.write(Step(1.0, 0.1, 8, 0.5), step=step)
    assert time.perf_counter() - before < 2.0  # 20 ms as a rule; the disk would have taken forever
    before = time.perf_counter()
    writer.close(timeout=0.1)
    assert time.perf_counter() - before < 2.0
    gate.open.set()
    until(lambda: not writer._thread.is_alive())


def test_after_closing_events_are_counted_not_raised(tmp_path):
    writer = EventWriter(tmp_path, 0)
    writer.write(Log("info", "x"))
    writer.close()
    writer.write(Log("info", "y"))
    writer.close()
    assert writer.dropped == 1 and len(lines(writer.path)) == 1


def test_a_folder_that_cannot_be_made_costs_the_events_and_nothing_else(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with EventWriter(tmp_path / "file" / "events", 0) as writer:
        for _ in range(3):
            writer.write(Log("info", "x"))
        until(lambda: writer.dropped == 3)
        writer.write(Log("info", "y"))
    assert writer.dropped == 4
    assert [record.name for record in caplog.records] == ["collie.events"]


def test_a_full_disk_costs_the_events_it_refused(tmp_path, monkeypatch):
    """Each half line that a full disk leaves is closed before the next event, and every lost event is counted."""
    real, full = os.write, threading.Event()
    full.set()
    pieces = iter([20, 0, 20, 0])  # bytes that go in before the disk is full, twice

    def write(descriptor, data):
        if not full.is_set():
            return real(descriptor, data)
        if size := next(pieces):
            return real(descriptor, data[:size])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "write", write)
    writer = EventWriter(tmp_path, 0)
    writer.write(Log("info", "lost"))
    until(lambda: writer.dropped == 1)
    writer.write(Log("info", "lost, and the alert about the first with it"))
    until(lambda: writer.dropped == 3)
    full.clear()
    writer.write(Log("info", "kept"))
    writer.close()
    reader = EventReader(writer.path)
    kept, alert = (record.event for record in reader.read())
    assert kept == Log("info", "kept") and alert.message.startswith("2 events were dropped")
    assert reader.bad_lines == 2


def test_an_event_that_cannot_be_written_is_counted(tmp_path):
    with EventWriter(tmp_path, 0) as writer:
        writer.write(Log("info", object()))
        writer.write(Log("info", "fine"))
    reader = EventReader(writer.path)
    assert [type(record.event) for record in reader.read()] == [Log, Alert]
    assert writer.dropped == 1


def test_half_a_line_of_a_killed_writer_is_closed(tmp_path):
    (tmp_path / "rank-00000.a0.jsonl").write_text('{"v":"1.0","seq":0,"t":1.0,"ra')
    with EventWriter(tmp_path, 0) as writer:
        writer.write(Log("info", "again"))
    reader = EventReader(writer.path)
    assert [record.event.message for record in reader.read()] == ["again"]
    assert (reader.bad_lines, reader.gaps) == (1, 0)


def test_a_symbolic_link_is_not_followed(tmp_path):
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "rank-00000.a0.jsonl").symlink_to(tmp_path / "elsewhere")
    with EventWriter(tmp_path / "events", 0) as writer:
        writer.write(Log("info", "x"))
    assert not (tmp_path / "elsewhere").exists() and writer.dropped == 1


def test_a_forked_process_stays_silent(tmp_path):
    """A loader's process inherits the writer; its events would break the sequence."""
    writer = EventWriter(tmp_path, 0)
    writer.write(Log("info", "parent"))
    child = os.fork()
    if child == 0:
        writer.write(Log("info", "child"))
        writer.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    writer.close()
    assert [line["message"] for line in lines(writer.path)] == ["parent"]


def test_a_script_that_does_not_close_keeps_its_last_events(tmp_path):
    script = (
        "import sys; from collie.events import EventWriter, Log\n"
        "writer = EventWriter(sys.argv[1], 0)\n"
        "for i in range(100): writer.write(Log('info', str(i)))\n"
        "raise SystemExit(3)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=60).returncode == 3
    assert [line["message"] for line in lines(tmp_path / "rank-00000.a0.jsonl")] == [str(i) for i in range(100)]


def test_closing_while_the_thread_looks_away_ends_it(tmp_path):
    """close() between the thread's look at whether it is closed and its taking of the queue must not be missed."""

    class Raced(EventWriter):
        raced = False

        def _take(self):
            if not self.raced:
                self.raced = True
                self._closing.set()
                self._filled.set()
            return super()._take()

    writer = Raced(tmp_path, 0)
    writer.write(Log("info", "x"))
    writer._thread.join(10)
    assert not writer._thread.is_alive() and len(lines(writer.path)) == 1


def test_a_signal_handler_may_write_while_its_thread_is_writing(tmp_path):
    """An object that writes while it is being encoded stands for the handler: same thread, inside the lock."""
    writer = EventWriter(tmp_path, 0)

    class Interrupting:
        def item(self):
            writer.write(Log("info", "from the handler"))
            return 1.0

    thread = threading.Thread(target=lambda: writer.write(Metric("loss", Interrupting())), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    writer.close()
    assert [(line["seq"], line["kind"]) for line in lines(writer.path)] == [(0, "metric"), (1, "log")]


def test_the_null_writer_has_the_same_methods(tmp_path):
    with NullWriter() as writer:
        writer.write(Log("info", "x"), step=3)
    public = {name for name in dir(EventWriter) if not name.startswith("_")}
    assert public <= set(dir(NullWriter)) and writer.dropped == 0
