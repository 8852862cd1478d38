"""A checkpoint's folder on any file system that fsspec knows: in place when its manifest is."""

from collie.controller.trainer._checkpoint._manifest import MANIFEST, Manifest, parse_manifest
from collie.interfaces import CheckpointError
from collie.models.weights import RemoteFolder, whole_folders


class RemoteCheckpoint(RemoteFolder):
    """Where a checkpoint is to lie, on a file system that every rank reaches. All files of its folder belong to it.

    path: its URL.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, MANIFEST, lambda name: True)

    def prepare(self) -> str:
        """Return where to upload to: see `RemoteFolder`.

        Raises:
            CheckpointError: at the URL lies something that is no checkpoint.
            OSError: the file system refused.
        """
        if not (self.is_empty or self.was_saved):
            raise CheckpointError(
                f"{self.path} exists and is no checkpoint, so it is not replaced. Give a URL that is not in use."
            )
        return super().prepare()


def newest_remote(url: str) -> list[tuple[str, Manifest]]:
    """Return the checkpoints that lie directly below a URL, the last written one first."""
    found = {}
    for path, content in whole_folders(url, MANIFEST):
        try:
            found[path] = parse_manifest(content, path)
        except CheckpointError:
            continue
    return sorted(found.items(), key=lambda item: (item[1].written, item[1].step), reverse=True)
