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
from collie.models.weights._remote import RemoteFolder, is_url
from collie.models.weights._shards import Shard, sync, write_shards
from collie.models.weights._target import Target
from collie.parallel import Topology, leads_stage, together

_INDEX = "model.safetensors.index.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt", ".index.json")
_WEIGHTS_OF_A_MODEL = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_OF_THE_SOURCE_ALONE = ("config.json", "README.md")  # the first is written anew; a model card describes other weights


@dataclass(frozen=True)
class Description:
    """What a folder says besides its weights.

    config: the contents of config.json.
    source: the folder whose other files (tokenizer, chat template, generation_config, modules) are copied, or None.
    """

    config: dict[str, Any]
    source: Path | None


class _ModelFolder:
    """See `Target`: a model's folder on a disk that all writers see."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    def prepare(self) -> str:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent)

    def local(self, stage: str) -> Path:
        if not Path(stage).is_dir():
            raise CheckpointError(
                f"The model could not be saved beside {stage}: this rank does not see that folder of rank 0. "
                f"Give a path on a file system that all nodes share, or a URL."
            )
        return Path(stage)

    def put(self, stage: str, names: Iterable[str]) -> None:
        """They are where they belong."""

    def commit(self, stage: str) -> None:
        _sync(Path(stage))
        _move(Path(stage), self.path)
        shutil.rmtree(stage, ignore_errors=True)  # what is left of it beside a folder that was there

    def discard(self, stage: str) -> None:
        shutil.rmtree(stage, ignore_errors=True)

    def leave(self) -> None:
        """There is nothing to clear away."""

    def fetch(self) -> Path:
        return self.path


def model_target(path: Path | str) -> Target:
    """Return where a model is to lie: on a disk, or by a URL."""
    return remote_model(str(path)) if is_url(path) else _ModelFolder(Path(path))


def remote_model(url: str) -> RemoteFolder:
    """Return a model's folder by its URL."""
    return RemoteFolder(url, "config.json", lambda name: _WEIGHTS_OF_A_MODEL.fullmatch(name) is not None)


def write_folder(
    path: Path | str,
    parameters: Iterable[tuple[str, Tensor | None]],
    names: Names,
    config: Any,
    describe: Callable[[], Description],
    max_shard_bytes: int,
    topology: Topology,
    also: Callable[[Path], Any] | None = None,
) -> None:
    """Write a model to a folder. Collective: every rank calls it, and the leader of each pipeline stage writes.

    A writer holds one shard at a time. On a disk everything is written to a folder beside it, synced, and moved into
    place by rank 0: a new folder by one rename; into an existing one file by file, after which weights of before that
    are no part of this model are removed. By a URL each shard is uploaded by its writer: see `RemoteFolder`. Other
    files of an existing folder stay.

    Args:
        path: of the folder, made where it is missing; on a file system that all writers see. Or a URL.
        parameters: (our name, whole tensor on the CPU where this rank leads its stage), walked once and to the end
            whatever fails, since ranks that take part in gathering them would wait forever.
        names: the family's table.
        config: the model's config, for entries whose row order depends on it.
        describe: gives config.json and other files; called on rank 0 alone.
        max_shard_bytes: a shard holds no more, except for a single tensor that is larger.
        topology: the ranks that call this.
        also: writes more into the folder that it gets; called on rank 0 alone.

    Raises:
        CheckpointError: a rank could not write; on every rank. What was there is as it was, unless it was in the last
            moments, when files are moved into it: then it has no config.json and no index, and is refused.
    """
    target = model_target(path)
    failing = f"The model could not be saved to {target.path}"
    committed = False

    def prepare() -> tuple[str, Description] | None:
        if topology.rank != 0:
            return None
        description = describe()  # before there is a folder to leave behind
        return target.prepare(), description

    def take_part() -> list[Shard]:
        remaining = iter(parameters)
        try:
            if not leads_stage(topology):
                return []
            prefix = f"{topology.pp_rank}-"
            return write_shards(target.local(stage), prefix, remaining, names, config, max_shard_bytes)
        finally:
            for _ in remaining:
                pass

    def hand_over() -> None:
        own = {shard.file: final[shard.file] for shard in written[topology.rank]}
        for file, name in own.items():
            (target.local(stage) / file).rename(target.local(stage) / name)
        target.put(stage, own.values())

    def finish() -> None:
        nonlocal committed
        if topology.rank == 0:
            local = target.local(stage)
            if len(final) > 1:
                _write_json(local / _INDEX, _index([shard for ones in written for shard in ones], final))
            write_description(local, description)
            if also is not None:
                also(local)
            target.commit(stage)
            committed = True

    prepared = together(topology, failing, prepare)[0]
    assert prepared is not None
    stage, description = prepared
    try:
        written = together(topology, failing, take_part)
        final = _final_names([shard for ones in written for shard in ones])
        together(topology, failing, hand_over)
        together(topology, failing, finish)
    finally:
        if topology.rank == 0 and not committed:  # where others failed, too, they have stopped writing
            target.discard(stage)
        target.leave()


def _final_names(shards: list[Shard]) -> dict[str, str]:
    """What each shard is called once their number is known."""
    if len(shards) == 1:
        return {shards[0].file: "model.safetensors"}
    return {shard.file: f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n, shard in enumerate(shards, start=1)}


def _index(shards: list[Shard], final: dict[str, str]) -> dict[str, Any]:
    weight_map = {name: final[shard.file] for shard in shards for name in shard.tensors}
    total = sum(shard.size for shard in shards)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


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
        if _WEIGHTS_OF_A_MODEL.fullmatch(path.name) and path.relative_to(folder) not in new:
            path.unlink()
    sync(folder)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
