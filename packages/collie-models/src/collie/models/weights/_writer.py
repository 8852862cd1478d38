"""Writing a Hugging Face folder: each stage's shards by a rank that has them, then all of it into place by one."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from collie.interfaces import CheckpointError
from collie.models.weights._names import Names
from collie.models.weights._shards import Shard, sync, write_shards
from collie.parallel import Topology, leads_stage, together

_INDEX = "model.safetensors.index.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt", ".index.json")
_OF_THE_SOURCE_ALONE = ("config.json", "README.md")  # the first is written anew; a model card describes other weights


@dataclass(frozen=True)
class Description:
    """What a folder says besides its weights.

    config: the contents of config.json.
    source: the folder whose other files (tokenizer, chat template, generation_config, modules) are copied, or None.
    """

    config: dict[str, Any]
    source: Path | None


def write_folder(
    folder: Path,
    parameters: Iterable[tuple[str, Tensor | None]],
    names: Names,
    config: Any,
    describe: Callable[[], Description],
    max_shard_bytes: int,
    topology: Topology,
) -> None:
    """Write a model to `folder`. Collective: every rank calls it, and the leader of each pipeline stage writes.

    A writer holds one shard at a time. Everything is written to a folder beside it, synced, and moved into place by
    rank 0: a new folder by one rename; into an existing one file by file, after which weights of before that are no
    part of this model are removed. Other files of an existing folder stay.

    Args:
        folder: made where it is missing; on a file system that all writers see.
        parameters: (our name, whole tensor on the CPU where this rank leads its stage), walked once and to the end
            whatever fails, since ranks that take part in gathering them would wait forever.
        names: the family's table.
        config: the model's config, for entries whose row order depends on it.
        describe: gives config.json and other files; called on rank 0 alone.
        max_shard_bytes: a shard holds no more, except for a single tensor that is larger.
        topology: the ranks that call this.

    Raises:
        CheckpointError: a rank could not write; on every rank. What was in `folder` is as it was, unless it was in the
            last moments, when files are moved into it: then it has no config.json and no index, and is refused.
    """
    folder = folder.resolve()
    failing = f"The model could not be saved to {folder}"

    def prepare() -> tuple[Path, Description] | None:
        if topology.rank != 0:
            return None
        description = describe()  # before there is a folder to leave behind
        return _scratch(folder), description

    def take_part() -> list[Shard]:
        remaining = iter(parameters)
        try:
            return _write_stage(scratch, remaining, names, config, max_shard_bytes, topology)
        finally:
            for _ in remaining:
                pass

    def finish() -> None:
        if topology.rank == 0:
            _number(scratch, [shard for stage in written for shard in stage])
            write_description(scratch, description)
            _sync(scratch)
            _move(scratch, folder)

    prepared = together(topology, failing, prepare)[0]
    assert prepared is not None
    scratch, description = prepared
    try:
        written = together(topology, failing, take_part)
        together(topology, failing, finish)
    finally:
        if topology.rank == 0:  # where others failed, too, they have stopped writing: this one has heard of it
            shutil.rmtree(scratch, ignore_errors=True)


def _scratch(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))


def _write_stage(
    scratch: Path,
    parameters: Iterable[tuple[str, Tensor | None]],
    names: Names,
    config: Any,
    max_shard_bytes: int,
    topology: Topology,
) -> list[Shard]:
    if not leads_stage(topology):
        return []
    if not scratch.is_dir():
        raise CheckpointError(
            f"The model could not be saved beside {scratch}: rank {topology.rank} does not see that folder of rank 0. "
            f"Give a path on a file system that all nodes share."
        )
    return write_shards(scratch, f"{topology.pp_rank}-", parameters, names, config, max_shard_bytes)


def _number(folder: Path, shards: list[Shard]) -> None:
    """Give the shards their final names, and an index where there is more than one."""
    if len(shards) == 1:
        (folder / shards[0].file).rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / shard.file).rename(folder / file)
        weight_map |= dict.fromkeys(shard.tensors, file)
    total = sum(shard.size for shard in shards)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / _INDEX, index)


def write_description(folder: Path, description: Description) -> None:
    """Write what a folder says besides its weights."""
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
        sync(path)


def _move(scratch: Path, folder: Path) -> None:
    if not folder.exists():
        scratch.chmod(0o777 & ~_umask())  # a temporary folder is private
        scratch.rename(folder)
        sync(folder.parent)
        return
    for path in (folder / "config.json", *folder.glob("*.index.json")):
        path.unlink(missing_ok=True)  # whoever is interrupted from here on leaves no model, rather than a mixed one
    sync(folder)
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
    sync(folder)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
