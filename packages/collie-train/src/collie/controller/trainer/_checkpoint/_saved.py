"""An optimizer's state as a checkpoint has it: what `collie.parallel.put_state` reads from."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from collie.controller.trainer._checkpoint._encode import decode
from collie.controller.trainer._checkpoint._manifest import TRAINING, Manifest
from collie.controller.trainer._checkpoint._run import Run
from collie.controller.trainer._checkpoint._snapshot import INDEX, NUMBERS, rank_file
from collie.interfaces import CheckpointError
from collie.models.weights import StateTensors
from collie.parallel import Fill, Number

_RANDOM = "random/"


class SavedState:
    """See `collie.parallel.Saved`. Opening it reads headers and JSON files.

    Raises:
        CheckpointError: a file is no safetensors file.
    """

    def __init__(self, run: Run, folder: Path, manifest: Manifest) -> None:
        self._folder, self._rank = folder, run.topology.rank
        self._same_layout = manifest.layout == {**run.layout, "world_size": run.topology.world_size}
        self._layout = manifest.layout
        self._tensors = StateTensors(folder / TRAINING / INDEX, run.names, run.model_config)
        described = json.loads((folder / TRAINING / NUMBERS).read_text(encoding="utf-8"))
        self._options = {name: group["options"] for group in described["groups"] for name in group["parameters"]}
        self._numbers = described["numbers"]

    def keys(self, name: str) -> Iterable[str]:
        return self._tensors.keys(name)

    def fill(self, key: str) -> Fill:
        return self._tensors.fill(key)

    def dtype(self, name: str, key: str) -> torch.dtype:
        return self._tensors.dtype(name, key)

    def fixed(self, name: str) -> Mapping[str, Tensor]:
        return self._tensors.fixed(name)

    def numbers(self, name: str) -> Mapping[str, Number]:
        return {
            key: Number(decode(value), getattr(torch, dtype) if dtype is not None else None)
            for key, (value, dtype) in self._numbers.get(name, {}).items()
        }

    def bound(self) -> Mapping[str, Tensor]:
        rank = self._rank if self._same_layout else 0
        with safe_open(self._folder / rank_file(rank), framework="pt") as file:
            names = [name for name in file.keys() if not name.startswith(_RANDOM)]  # noqa: SIM118  # it is no dict
            if names and not self._same_layout:
                raise CheckpointError(
                    f"{self._folder} holds an optimizer's state in blocks that belong to its layout ({self._layout}): "
                    f"resume in that one, or use an optimizer whose state has a value for each element of a weight."
                )
            return {name: file.get_tensor(name) for name in names}

    def options(self, name: str) -> dict[str, Any]:
        if name not in self._options:
            raise CheckpointError(
                f"{self._folder} has no param group with {name}: it was written while other parameters were trained. "
                f"Train the same ones, or take the weights alone with load_model."
            )
        return {key: decode(value) for key, value in self._options[name].items()}
