"""The files of a checkpoint's tensors, as one rank writes them: each holds no more than it is allowed to."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from collie.models.weights._names import Names, inverse

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Shard:
    """A file that was written: its name for the time being, and the checkpoint's tensors in it."""

    file: str
    tensors: tuple[str, ...]
    size: int  # bytes of the tensors


def byte_size(size: int | str) -> int:
    """Return a size in bytes: a number, or text such as "5GB" (10⁹) or "5GiB" (2³⁰).

    Raises:
        ValueError: it is no size above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if found is None or found[2].upper() not in _UNITS or float(found[1]) <= 0:
        raise ValueError(f"max_shard_size={size!r} is not a size. Give a number of bytes, or text such as '5GB'.")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def write_shards(
    folder: Path,
    prefix: str,
    parameters: Iterable[tuple[str, Tensor | None]],
    names: Names,
    config: Any,
    max_bytes: int,
) -> list[Shard]:
    """Write tensors into files named `prefix`, number and ".shard", and let go of each file's before the next.

    Args:
        folder: exists.
        prefix: no other rank's.
        parameters: (our name, whole tensor on the CPU); None in place of a tensor is passed over.
        names: the family's table.
        config: the model's config, for entries whose row order depends on it.
        max_bytes: a file holds no more, except for a single tensor that is larger.

    Raises:
        OSError: the file system refused.
    """
    shards: list[Shard] = []
    held: dict[str, Tensor] = {}

    def size() -> int:
        return sum(tensor.nbytes for tensor in held.values())

    def close() -> None:
        # what the last number is, is known when all ranks have written: until then a file has its own number only
        shard = Shard(f"{prefix}{len(shards)}.shard", tuple(held), size())
        save_file(held, folder / shard.file, metadata={"format": "pt"})
        sync(folder / shard.file)
        shards.append(shard)
        held.clear()

    for ours, tensor in parameters:
        if tensor is None:
            continue
        name, entry = names.to_checkpoint(ours)
        if held and size() + tensor.nbytes > max_bytes:
            close()
        rows = inverse(entry.rows(config, tensor.shape[0]))
        held[name] = torch.cat([tensor[start:stop] for start, stop in rows]) if len(rows) > 1 else tensor.contiguous()
    if held:
        close()
    return shards


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
