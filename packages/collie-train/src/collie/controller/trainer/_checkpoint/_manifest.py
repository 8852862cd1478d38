"""The manifest of a checkpoint: written last, it lists every file with size and checksum. Without it there is none."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from collie.controller.trainer._checkpoint._files import Written, checksum
from collie.interfaces import CheckpointError

MANIFEST = "checkpoint.json"
TRAINING = "training"  # the folder beside the weights
_FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of.

    step: index of the last finished step, -1 before the first.
    written: seconds since the epoch.
    layout: sizes of the run that wrote it.
    versions: of the packages that wrote it.
    files: by their paths inside the folder.
    """

    step: int
    written: float
    layout: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, Written]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


def describe_files(folder: Path, known: Mapping[str, Written]) -> dict[str, Written]:
    """Return size and checksum of the files that are known, and of the others in a folder, which are read."""
    files = dict(known)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in files:
            files[name] = checksum(path)
    return files


def write_manifest(
    folder: Path, step: int, layout: dict[str, Any], versions: dict[str, str], files: dict[str, Written]
) -> Manifest:
    """Write the manifest of files that are complete."""
    manifest = Manifest(step, time.time(), layout, versions, files)
    content = {"format": _FORMAT, **asdict(manifest)}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Return a checkpoint's manifest, after a look at the names and sizes of its files.

    Raises:
        CheckpointError: there is none, it is of a later format, or a file is missing or of another size.
    """
    path = folder / MANIFEST
    if not path.is_file():
        reason = "does not exist" if not folder.exists() else f"has no {MANIFEST}: it was not written to its end"
        raise CheckpointError(
            f"{folder} is no checkpoint to resume from: it {reason}. Give a folder that save_checkpoint wrote; "
            f"for weights alone there is load_model."
        )
    manifest = parse_manifest(path.read_bytes(), path)
    _check_sizes(folder, manifest)
    return manifest


def parse_manifest(content: bytes, path: Path | str) -> Manifest:
    """Return what a manifest's file says. `path`: for the error.

    Raises:
        CheckpointError: it is damaged, or of a later format.
    """
    try:
        fields = json.loads(content)
        version = fields.pop("format")
        if version == _FORMAT:
            fields["files"] = {name: Written(**file) for name, file in fields["files"].items()}
            return Manifest(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}. Resume from another checkpoint.") from error
    raise CheckpointError(
        f"{path} is of format {version}, and this version of CoLLiE reads {_FORMAT}: install the one that wrote it."
    )


def check_contents(folder: Path, manifest: Manifest, rank: int, ranks: int) -> None:
    """Compare the checksums of this rank's share of the files.

    Raises:
        CheckpointError: a file is not what was written.
    """
    for number, (name, file) in enumerate(sorted(manifest.files.items())):
        if number % ranks == rank and checksum(folder / name) != file:
            raise CheckpointError(
                f"{folder / name} is damaged: its contents are not what was written (checksums differ). "
                f"Resume from another checkpoint."
            )


def _check_sizes(folder: Path, manifest: Manifest) -> None:
    for name, file in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder} is not whole: {name} is missing. Resume from another checkpoint.")
        if path.stat().st_size != file.bytes:
            raise CheckpointError(
                f"{folder} is damaged: {name} has {path.stat().st_size} bytes, and {file.bytes} were written. "
                f"Resume from another checkpoint."
            )
