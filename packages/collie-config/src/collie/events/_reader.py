"""Reads one rank's events while they are being written."""

from __future__ import annotations

import os
from pathlib import Path

from collie.events._files import open_regular
from collie.events._record import Record, parse


class EventReader:
    """Follows one event file. The file is opened anew at each read, since a remote one may have been replaced.

    Attributes:
        bad_lines: lines that were no record of this major version.
        gaps: sequence numbers that never came: events dropped by the writer or lost.
        last_error: why the last bad line was bad; empty if none was.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.bad_lines = 0
        self.gaps = 0
        self.last_error = ""
        self._offset = 0
        self._next: int | None = None

    def read(self, limit: int | None = None) -> list[Record]:
        """Return the records that came since the last call, at most `limit`; half a line stays for later.

        A file that does not exist yet, or cannot be read now, has no records.
        """
        records: list[Record] = []
        try:
            with open_regular(self.path) as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._offset, self._next = 0, None  # replaced by a shorter one: begin again
                file.seek(self._offset)
                while limit is None or len(records) < limit:
                    line = file.readline()
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    if (record := self._parse(line)) is not None:
                        records.append(record)
        except OSError:
            return records
        return records

    def _parse(self, line: bytes) -> Record | None:
        if not line.strip():
            return None
        try:
            seq, record = parse(line)
        except ValueError as error:
            self.bad_lines += 1
            self.last_error = str(error)
            if self._next is not None:
                self._next += 1  # it had a number of its own, so it is not a gap as well
            return None
        if self._next is not None and seq > self._next:
            self.gaps += seq - self._next
        self._next = seq + 1
        return record
