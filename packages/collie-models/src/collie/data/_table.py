"""Token rows in flat arrays: some 5 bytes a token and no Python object a row, so that data workers share them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collie.data._extras import Extras, JsonExtras, offsets_of
from collie.data._rows import Refused
from collie.data._safetensors import Pieces, map_arrays, write_arrays
from collie.interfaces import DataError
from collie.module import IGNORE_INDEX

FILE_NAME = "collie-dataset.safetensors"
FORMAT = "collie-dataset-2"
_EARLIER = "collie-dataset-1"  # all token fields whole, the extras one JSON list, and no more a row
_ROWS_AT_ONCE = 4096  # rows written at once


class TokenTable:
    """Rows of tokens, and whatever else each row carries.

    Attributes:
        columns: flat arrays, of which row r is `offsets[r]:offsets[r + 1]`. "input_ids" is int32. Labels are
            "targets" (bool) where each label of the table is its own token or -100, which is the rule, else "labels"
            (int32). "attention_mask" (int32) is there where not all of it is 1.
        offsets: int64, one more than rows.
        extras: other fields of a row, by its number; empty where no row has any.
        uncut: int64, for each row its tokens before max_length cut it.
        inside_turn: bool, for each row whether that cut fell between two targets.
        refused: rows of the source that are not in the table, in their order.
    """

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        offsets: np.ndarray,
        extras: Extras = (),
        *,
        uncut: np.ndarray | None = None,
        inside_turn: np.ndarray | None = None,
        refused: Sequence[Refused] = (),
    ) -> None:
        self.columns = columns
        self.offsets = offsets
        self.extras = extras
        self.uncut = np.diff(offsets) if uncut is None else uncut
        self.inside_turn = np.zeros(len(self), dtype=np.bool_) if inside_turn is None else inside_turn
        self.refused = refused
        self._file: tuple[Path, tuple[int, ...]] | None = None  # what is mapped, and how to know it again

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getstate__(self) -> dict[str, Any]:
        """A mapped table travels to a spawned process as its file's name, not as its tokens."""
        return {"_file": self._file} if self._file is not None else self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state if state["_file"] is None else _map_again(*state["_file"]).__dict__)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64."""
        return np.diff(self.offsets)

    def row(self, number: int) -> dict[str, Any]:
        """Row `number` as a dict: the token fields as lists of int, then the others."""
        part = slice(self.offsets[number], self.offsets[number + 1])
        input_ids = self.columns["input_ids"][part]
        row: dict[str, Any] = {
            "input_ids": input_ids.tolist(),
            "attention_mask": (
                self.columns["attention_mask"][part].tolist()
                if "attention_mask" in self.columns
                else [1] * len(input_ids)
            ),
            "labels": self._labels(part).tolist(),
        }
        if self.extras:
            row.update(self.extras[number])
        return row

    def target_counts(self) -> np.ndarray:
        """For each row how many of its labels are not -100, int64. Reads a byte or four of every token."""
        targets = self.targets()
        counts = np.zeros(len(self), dtype=np.int64)
        some = np.flatnonzero(self.lengths)  # reduceat gives an empty row its neighbour's first element
        if len(some):
            counts[some] = np.add.reduceat(targets, self.offsets[some], dtype=np.int64)
        return counts

    def targets(self, part: slice = slice(None)) -> np.ndarray:
        """For each token of `part` whether it is a target, bool."""
        given = self.columns.get("targets")
        return self.columns["labels"][part] != IGNORE_INDEX if given is None else given[part]

    def _labels(self, part: slice) -> np.ndarray:
        if "labels" in self.columns:
            return self.columns["labels"][part]
        return np.where(self.columns["targets"][part], self.columns["input_ids"][part], np.int32(IGNORE_INDEX))

    def save(self, folder: Path, order: np.ndarray | None = None) -> None:
        """Write the rows of `order` (all, where it is None) to one safetensors file in `folder`, whole or not at all.

        Raises UnsavableField: an extra field that JSON cannot hold.
        """
        order = np.arange(len(self)) if order is None else np.asarray(order)
        lengths = self.lengths[order]
        tokens = int(lengths.sum())
        arrays = {
            "offsets": _whole(offsets_of(lengths)),
            "uncut": _whole(np.asarray(self.uncut)[order].astype(np.int64)),
            "inside_turn": _whole(np.asarray(self.inside_turn)[order]),
            **{
                name: Pieces(column.dtype, tokens, _in_order(column, self.offsets, order))
                for name, column in self.columns.items()
            },
        }
        if self.extras:
            extras = self.extras if isinstance(self.extras, JsonExtras) else JsonExtras.of(self.extras)
            sizes = np.diff(extras.offsets)[order]
            arrays["extra_offsets"] = _whole(offsets_of(sizes))
            arrays["extras"] = Pieces(
                extras.text.dtype, int(sizes.sum()), _in_order(extras.text, extras.offsets, order)
            )
        if self.refused:
            reasons = [[refused.index, refused.reason] for refused in self.refused]
            arrays["refused"] = _whole(np.frombuffer(json.dumps(reasons).encode(), dtype=np.uint8))
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{FILE_NAME}.{os.getpid()}"
        try:
            write_arrays(unfinished, arrays, {"format": FORMAT})
            os.replace(unfinished, folder / FILE_NAME)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path, *, mapped: bool = False) -> TokenTable:
        """Read what `save` wrote, this release's or an earlier one's. Nothing in the file is executed.

        mapped: leave it in the file, whose pages the kernel reads as they are used and shares between all processes;
            the file must then stay as it is (`save` replaces a file and never writes into one).
        Raises DataError: no such file, or one that is cut, of another format, or not consistent.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            raise DataError(
                f"{folder} holds no {FILE_NAME}: give the folder that save_processed wrote. "
                "Pickled shards of earlier versions are not read, because reading a pickle runs what is in it: "
                "build the dataset from its rows and save it again."
            )
        try:
            signature = _signature(path)
            arrays, metadata = map_arrays(path)
            if not mapped:
                arrays = {name: array.copy() for name, array in arrays.items()}
            if metadata.get("format") not in (FORMAT, _EARLIER):
                raise DataError(f"{path} is a safetensors file, but not one that save_processed wrote.")
            table = cls(
                {n: arrays[n] for n in ("input_ids", "attention_mask", "labels", "targets") if n in arrays},
                arrays["offsets"],
                _extras(arrays),
                uncut=arrays.get("uncut"),
                inside_turn=arrays.get("inside_turn"),
                refused=_refused(arrays),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} cannot be read ({error}): save the dataset again.") from error
        table._check(path)
        if mapped:
            table._file = path, signature
        return table

    def _check(self, path: Path) -> None:
        kinds = {"input_ids": np.int32, "attention_mask": np.int32, "labels": np.int32, "targets": np.bool_}
        sound = (
            self.offsets.ndim == 1
            and len(self.offsets) > 0
            and self.offsets[0] == 0
            and bool((np.diff(self.offsets) >= 0).all())
            and "input_ids" in self.columns
            and ("targets" in self.columns) != ("labels" in self.columns)
            and all(column.shape == (self.offsets[-1],) for column in self.columns.values())
            and all(column.dtype == kinds[name] for name, column in self.columns.items())
            and len(self.extras) in (0, len(self))
            and len(self.uncut) == len(self.inside_turn) == len(self)
        )
        if not sound:
            raise DataError(f"{path} is not consistent: its rows and its tokens do not fit. Save the dataset again.")


def _extras(arrays: Mapping[str, np.ndarray]) -> Extras:
    if "extras" not in arrays:
        return ()
    if "extra_offsets" in arrays:
        return JsonExtras(arrays["extras"], arrays["extra_offsets"])
    extras: list[dict[str, Any]] = json.loads(arrays["extras"].tobytes())
    return extras


def _refused(arrays: Mapping[str, np.ndarray]) -> list[Refused]:
    reasons = json.loads(arrays["refused"].tobytes()) if "refused" in arrays else []
    return [Refused(index, reason) for index, reason in reasons]


def _whole(array: np.ndarray) -> Pieces:
    return Pieces(array.dtype, len(array), [array])


def _in_order(column: np.ndarray, offsets: np.ndarray, order: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of `order` of a flat array, some at a time."""
    lengths = np.diff(offsets)
    for start in range(0, len(order), _ROWS_AT_ONCE):
        rows = order[start : start + _ROWS_AT_ONCE]
        if (np.diff(rows) == 1).all():
            yield column[offsets[rows[0]] : offsets[rows[-1] + 1]]
            continue
        new = offsets_of(lengths[rows])
        # for each element of these rows its place in the column
        yield column[np.arange(new[-1]) + np.repeat(offsets[rows] - new[:-1], lengths[rows])]


def _signature(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _map_again(path: Path, signature: tuple[int, ...]) -> TokenTable:
    if not path.is_file() or _signature(path) != signature:
        raise DataError(f"{path} was replaced or removed while it was in use: start again.")
    return TokenTable.load(path.parent, mapped=True)
