"""Writing safetensors files: from memory to the disk in one pass, with a checksum, and nothing copied on the way.

The format: eight bytes with the length of a JSON header, the header (dtype, shape and offsets of each tensor), then
the tensors' bytes without gaps (https://huggingface.co/docs/safetensors, "Format").
"""

import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_ALIGNMENT = 8
_READ = 2**22  # bytes


@dataclass(frozen=True)
class Content:
    """A tensor as it is to be written: row blocks of a tensor in memory, one after the other.

    rows: None takes it as it is.
    """

    tensor: Tensor
    rows: Sequence[tuple[int, int]] | None = None

    def blocks(self) -> list[Tensor]:
        if self.rows is None or len(self.rows) == 1:
            return [self.tensor.contiguous()]
        return [self.tensor[start:stop].contiguous() for start, stop in self.rows]


@dataclass(frozen=True)
class Written:
    """A file's size in bytes and the CRC-32 of its contents."""

    bytes: int
    crc32: int


def write_tensors(path: Path, tensors: Mapping[str, Content]) -> Written:
    """Write a safetensors file and wait until it is on the disk.

    Raises:
        OSError: the file system refused.
        KeyError: a tensor has a dtype that the format has no name for.
    """
    # tensors of larger elements first: readers map the file, and want each at a multiple of its element's size
    ordered = sorted(tensors.items(), key=lambda item: -item[1].tensor.element_size())
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, content in ordered:
        tensor = content.tensor
        start, end = end, end + math.prod(tensor.shape) * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    with open(path, "wb") as file:
        head = len(encoded).to_bytes(8, "little") + encoded
        crc, size = zlib.crc32(head), file.write(head)
        for _, content in ordered:
            for block in content.blocks():
                data = block.reshape(-1).view(torch.uint8).numpy().data
                crc, size = zlib.crc32(data, crc), size + file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return Written(size, crc)


def checksum(path: Path) -> Written:
    """Read a file for its size and checksum."""
    crc, size = 0, 0
    with open(path, "rb") as file:
        while data := file.read(_READ):
            crc, size = zlib.crc32(data, crc), size + len(data)
    return Written(size, crc)
