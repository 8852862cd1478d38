"""Writing a Hugging Face folder: shards one after the other, and then all of it into place."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from collie.interfaces import CheckpointError
from collie.models.weights._names import Names, inverse

_INDEX = "model.safetensors.index.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt", ".index.json")
_OF_THE_SOURCE_ALONE = ("config.json", "README.md")  # the first is written anew; a model card describes other weights
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Description:
    """What a folder says besides its weights.

    config: the contents of config.json.
    source: the folder whose other files (tokenizer, chat template, generation_config, modules) are copied, or None.
    """

    config: dict[str, Any]
    source: Path | None


def byte_size(size: int | str) -> int:
    """Return a size in bytes: a number, or text such as "5GB" (10⁹) or "5GiB" (2³⁰).

    Raises:
        ValueError: it is no size above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if found is None or found[2].upper() not in _UNITS or float(found[1]) <= 0:
        raise ValueError(f"max_shard_size={size!r} is not a size. Give a number of bytes, or text such as '5GB'.")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def write_folder(
    folder: Path,
    parameters: Iterable[tuple[str, Tensor | None]],
    names: Names,
    config: Any,
    description: Description,
    max_shard_bytes: int,
) -> None:
    """Write a model to `folder`, holding one shard at a time in memory.

    Everything is written to a folder beside it, synced, and moved into place: a new folder by one rename; into an
    existing one file by file, after which weights of before that are no part of this model are removed. Other files
    of an existing folder stay.

    Args:
        folder: made where it is missing.
        parameters: (our name, whole tensor on the CPU), walked once and to the end.
        names: the family's table.
        config: the model's config, for entries whose row order depends on it.
        description: config.json and other files.
        max_shard_bytes: a shard holds no more, except for a single tensor that is larger.

    Raises:
        CheckpointError: the file system refused. `parameters` has been walked to the end all the same, since ranks
            that take part in gathering them would wait forever.
    """
    remaining = iter(parameters)
    try:
        folder = folder.resolve()
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _write_weights(scratch, remaining, names, config, max_shard_bytes)
            _describe(scratch, description)
            _sync(scratch)
            _move(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"The model could not be saved to {folder}: {error}.") from error
    finally:
        for _ in remaining:
            pass


def _write_weights(
    folder: Path, parameters: Iterable[tuple[str, Tensor | None]], names: Names, config: Any, max_shard_bytes: int
) -> None:
    shards: list[list[str]] = []  # the names in each
    shard: dict[str, Tensor] = {}
    total = 0

    def close() -> None:
        # what the last number is, is known after the last shard: until then a file's name has its own number only
        save_file(shard, folder / f"{len(shards)}.shard", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    held = 0
    for ours, tensor in parameters:
        if tensor is None:
            continue
        name, entry = names.to_checkpoint(ours)
        rows = inverse(entry.rows(config, tensor.shape[0]))
        whole = torch.cat([tensor[start:stop] for start, stop in rows]) if len(rows) > 1 else tensor.contiguous()
        if shard and held + whole.nbytes > max_shard_bytes:
            close()
            held = 0
        shard[name] = whole
        held += whole.nbytes
        total += whole.nbytes
    close()
    _number(folder, shards, total)


def _number(folder: Path, shards: list[list[str]], total: int) -> None:
    """Give the shards their final names, and an index where there is more than one."""
    if len(shards) == 1:
        (folder / "0.shard").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{number}.shard").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / _INDEX, index)


def _describe(folder: Path, description: Description) -> None:
    _write_json(folder / "config.json", description.config)
    if description.source is None:
        return
    for path in sorted(description.source.iterdir()):
        other = path.name in _OF_THE_SOURCE_ALONE or path.name.startswith(".") or path.name.endswith(_WEIGHTS)
        if path.is_file() and not other:
            shutil.copyfile(path, folder / path.name)
        elif path.is_dir() and path.name == "additional_chat_templates":
            shutil.copytree(path, folder / path.name)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sync(folder: Path) -> None:
    """Make sure that what a rename makes visible is on the disk."""
    for path in (*folder.rglob("*"), folder):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(scratch: Path, folder: Path) -> None:
    if not folder.exists():
        scratch.chmod(0o777 & ~_umask())  # a temporary folder is private
        scratch.rename(folder)
        _sync_one(folder.parent)
        return
    new = {path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file()}
    for file in sorted(
        new, key=lambda file: (file.name == "config.json", file.name == _INDEX)
    ):  # what names others, last
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / file, folder / file)
    for path in folder.iterdir():
        old_weights = re.fullmatch(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?", path.name)
        if old_weights and path.relative_to(folder) not in new:
            path.unlink()
    _sync_one(folder)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
