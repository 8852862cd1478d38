"""Adapters in PEFT's files: adapter_config.json and adapter_model.safetensors, named as in transformers' model."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from collie.adapters._adapter import Adapter, Stored
from collie.adapters._supported import peft_module
from collie.interfaces import CheckpointError
from collie.models import CollieModelForCausalLM
from collie.models.weights import RemoteFolder, fetched, inverse, is_url, writing
from collie.parallel import Fill, Topology, full_parameters, leads_stage, together

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def write_adapter(model: CollieModelForCausalLM, adapter: Adapter, path: str | Path, topology: Topology) -> None:
    """Write an adapter where PEFT looks for it. Collective; rank 0 writes, and holds all of the adapter.

    Raises:
        CheckpointError: the file system refused; on every rank.
    """
    tensors = _gathered(model, adapter, topology)
    config = adapter.config.to_dict() | {
        "inference_mode": True,
        "base_model_name_or_path": str(model.source) if model.source is not None else None,
    }

    def work() -> None:
        if topology.rank == 0:
            write_files(path, tensors, config)

    together(topology, f"The adapter could not be saved to {path}", work)


def write_files(path: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write both files beside their places, then move them there, one after the other; or upload them.

    Raises:
        OSError: the file system refused.
        MissingExtraError: the URL needs another package.
    """
    if is_url(path):
        with writing(_remote_adapter(path)) as scratch:
            _write(scratch, tensors, config)
        return
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adapter.", dir=folder) as beside:
        _write(Path(beside), tensors, config)
        for name in (WEIGHTS, CONFIG):
            with (Path(beside) / name).open("rb") as file:
                os.fsync(file.fileno())
            os.replace(Path(beside) / name, folder / name)


@contextmanager
def adapter_folder(path: str | Path, topology: Topology) -> Iterator[Path]:
    """Within it an adapter's files are in a folder: where they lie, or downloaded from a URL. Collective.

    Raises:
        CheckpointError: what the URL names is not whole, or could not be fetched; on every rank.
        MissingExtraError: the URL needs another package.
    """
    if not is_url(path):
        yield Path(path)
        return
    with fetched(_remote_adapter(path), topology, only=lambda name: name in (WEIGHTS, CONFIG)) as folder:
        yield folder


def _remote_adapter(url: str | Path) -> RemoteFolder:
    return RemoteFolder(str(url), CONFIG, lambda name: name == WEIGHTS)


def _write(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True, default=_plain)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else getattr(value, "value", str(value))


def _gathered(model: CollieModelForCausalLM, adapter: Adapter, topology: Topology) -> dict[str, Tensor]:
    """Return the adapter's tensors by PEFT's names on rank 0; nothing, or a stage's, on the others. Collective."""
    held: dict[str, Tensor] = {}
    chosen = full_parameters(model, topology, only=lambda name, parameter: name in adapter.stored)
    for name, whole in chosen:
        if whole is not None:
            stored = adapter.stored[name]
            parts = [whole[start:stop] for start, stop in inverse(stored.rows)]
            held[stored.key] = torch.cat(parts) if len(parts) > 1 else whole.contiguous()
    if topology.pp_size == 1 or not leads_stage(topology):
        return held
    stages: list[dict[str, Tensor]] | None = [{}] * topology.pp_size if topology.rank == 0 else None
    dist.gather_object(held, stages, group=topology.pp_group, group_dst=0)
    return {key: tensor for stage in stages or [] for key, tensor in stage.items()}


def read_config(folder: Path) -> Any:
    """Return the PeftConfig of a saved adapter.

    Raises:
        CheckpointError: there is none, or PEFT cannot read it.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no adapter: it has no {CONFIG}. Give the folder that save_peft wrote.")
    try:
        return peft_module().PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # whatever a damaged or newer file leads to
        raise CheckpointError(f"{folder / CONFIG} is no config of an adapter: {error}.") from error


def read_adapter(folder: Path, stored: Mapping[str, Stored], dtype: torch.dtype) -> Fill:
    """Check a saved adapter against a model's, and return what fills the parameters from it.

    Raises:
        CheckpointError: a tensor is missing, misshapen or unknown, or the file is damaged.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        raise CheckpointError(
            f"{folder} has no {WEIGHTS}. Give the folder that save_peft or PEFT's save_pretrained wrote; one with "
            f"adapter_model.bin is loaded and saved again with PEFT."
        )
    try:
        opened = safe_open(file, framework="pt")
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}. Save the adapter again.") from error
    _check(file, shapes, stored)

    def read(name: str, shape: torch.Size, start: int, stop: int, columns: tuple[int, int] | None = None) -> Tensor:
        rows = stored[name].rows
        tensor: Tensor = opened.get_tensor(stored[name].key)
        whole = torch.cat([tensor[first:last] for first, last in rows]) if len(rows) > 1 else tensor
        if columns is not None:
            whole = whole[:, columns[0] : columns[1]]
        return whole.flatten()[start:stop].to(dtype)

    return read


def _check(file: Path, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored]) -> None:
    expected = {entry.key: tuple(entry.shape) for entry in stored.values()}
    for key, shape in expected.items():
        if shapes.get(key) != shape:
            found = f"has shape {shapes[key]}" if key in shapes else "is missing"
            raise CheckpointError(
                f"{key!r} {found} in {file}; the model's adapter has it with shape {shape}. "
                f"Check that the adapter was made for this model, with these target_modules and ranks."
            )
    if unknown := sorted(shapes.keys() - expected.keys()):
        raise CheckpointError(
            f"{file} holds {len(unknown)} tensors that the model's adapter lacks, such as {unknown[0]!r}. "
            f"Check that the adapter was made for this model, with these target_modules."
        )
