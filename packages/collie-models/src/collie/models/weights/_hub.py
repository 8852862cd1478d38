"""Where a checkpoint's files are: in a folder, or in the cache of the Hugging Face Hub once they were fetched."""

from pathlib import Path
from typing import Any

from collie.interfaces import CheckpointError
from collie.parallel import once_per_node

_WITHOUT_WEIGHTS = ["*.json", "*.txt", "*.model", "*.py", "*.jinja", "*.tiktoken", "*.vocab", "LICENSE*", "NOTICE*"]
_REASON = 300  # characters of what the Hub said


def local_folder(path_or_name: str | Path, **hub: Any) -> Path:
    """Return the folder of a checkpoint.

    Of a run's ranks one on each node fetches what is missing, and the others wait for it. huggingface_hub reads its
    environment variables, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and HF_TOKEN among them, at its import.

    Args:
        path_or_name: a folder, or a repository's name.
        hub: what huggingface_hub's snapshot_download takes: revision, token, cache_dir, local_files_only,
            force_download.

    Raises:
        CheckpointError: no folder has that path, and the Hub gave none with that name; on every rank of the node.
    """
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        return path
    name = str(path_or_name)

    def fetch() -> str:
        return _fetch(name, hub)

    folder = Path(once_per_node(f"fetching {name} (revision {hub.get('revision') or 'main'})", fetch))
    return folder if folder.is_dir() else Path(fetch())  # nodes that share a host's name need not share its disk


def _fetch(name: str, hub: dict[str, Any]) -> str:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, allow_patterns=[*_WITHOUT_WEIGHTS, "model*.safetensors"], **hub)
        if not any(Path(folder).glob("model*.safetensors")):
            snapshot_download(name, allow_patterns=["pytorch_model*.bin", "pytorch_model*.bin.index.json"], **hub)
    except Exception as error:  # those of several libraries
        reason = " ".join(str(error).split()) or repr(error)
        raise CheckpointError(
            f"No folder {name!r}, and the Hugging Face Hub gave no repository of that name: "
            f"{reason[:_REASON]}{'…' if len(reason) > _REASON else ''} "
            f"Give a folder's path, or check name, network and token."
        ) from error
    return str(folder)
