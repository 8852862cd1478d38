"""Where a checkpoint's files are: in a folder, or in the cache of the Hugging Face Hub once they were fetched."""

from pathlib import Path
from typing import Any

from collie.interfaces import CheckpointError

_WITHOUT_WEIGHTS = ["*.json", "*.txt", "*.model", "*.py", "*.jinja", "*.tiktoken", "*.vocab", "LICENSE*", "NOTICE*"]


def local_folder(path_or_name: str | Path, **hub: Any) -> Path:
    """Return the folder of a checkpoint.

    Args:
        path_or_name: a folder, or a repository's name.
        hub: what huggingface_hub's snapshot_download takes: revision, token, cache_dir, local_files_only,
            force_download.

    Raises:
        CheckpointError: no folder has that path, and the Hub gave none with that name.
    """
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name = str(path_or_name)
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_WITHOUT_WEIGHTS, "*.safetensors"], **hub))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(name, allow_patterns=["*.bin", "*.bin.index.json"], **hub)
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise CheckpointError(
            f"No folder {name!r}, and the Hugging Face Hub gave no repository of that name: {reason} "
            f"Give a folder's path, or check name, network and token."
        ) from error
    return folder
