"""A checkpoint's contents, copied to memory: the only part of saving that training waits for."""

import copy
import json
import platform
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from collie.adapters import AdapterState, adapter_state
from collie.controller.trainer._checkpoint._encode import encode
from collie.controller.trainer._checkpoint._files import Content, Written
from collie.controller.trainer._checkpoint._manifest import TRAINING, Manifest, describe_files, write_manifest
from collie.controller.trainer._checkpoint._random import take_random_numbers
from collie.controller.trainer._checkpoint._run import Position, Run
from collie.controller.trainer._checkpoint._shards import Shard, index_of, name_in_file, plan_shards
from collie.models import CollieModelForCausalLM
from collie.models.weights import Description, file_order, write_description
from collie.parallel import (
    FIXED,
    WEIGHT,
    Described,
    Held,
    Number,
    OptimizerState,
    Task,
    assemble,
    held_weights,
    held_whole,
    share_out,
    take_state,
    together,
)

STATE, INDEX, NUMBERS = "state.json", "optimizer.index.json", "optimizer.json"
ADAPTER_INDEX = "adapter.index.json"
LEARNT, LEARNT_INDEX = "adapter_state.json", "adapter_state.index.json"
_MODEL_INDEX, _ADAPTER = "model.safetensors.index.json", f"{TRAINING}/{ADAPTER_INDEX}"
_PACKAGES = ("torch", "transformers", "deepspeed", "peft", "collie-models", "collie-train")
_Numbers = dict[str, dict[str, Number]]
_Groups = list[tuple[dict[str, Any], list[str]]]


@dataclass(frozen=True)
class _Told:
    """What each rank tells the others before tensors are put together."""

    tensors: list[Described]
    numbers: _Numbers
    groups: _Groups


@dataclass(frozen=True)
class Snapshot:
    """All that this rank writes of a checkpoint, in memory.

    files: its tensors, by the files' paths in the checkpoint.
    documents: JSON files, likewise.
    step: index of the last finished step.
    layout: of the run.
    model: gives config.json and what else belongs to the weights.
    """

    files: dict[str, dict[str, Content]]
    documents: dict[str, Any]
    step: int
    layout: dict[str, int]
    model: "_ModelFiles"

    def complete(self, stage: Path, written: dict[str, Written]) -> Manifest:
        """Add what there is once, and the manifest; for rank 0, when all ranks have written their files."""
        self.model.write(stage)
        for name, content in self.documents.items():
            path = stage / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return write_manifest(stage, self.step, self.layout, _versions(), describe_files(stage, written))


def take_snapshot(run: Run, position: Position) -> Snapshot:
    """Copy a run's state to memory; whole tensors are put together on the rank that will write them. Collective.

    Raises:
        CheckpointError: a state cannot be kept in a checkpoint; on every rank.
    """
    topology = run.topology
    held: list[Held] = []
    state, learnt = OptimizerState(), adapter_state(run.model)
    documents: dict[str, Any] = {}

    def tell() -> _Told:
        nonlocal state
        if run.optimizer is not None:
            state = take_state(run.model, run.optimizer, topology)
        held.extend([*held_weights(run.model, topology, run.keeps), *_buffers(run), *state.tensors])
        held.extend(held_whole(name, key, tensor) for (name, key), tensor in (learnt.tensors if learnt else {}).items())
        documents[f"{TRAINING}/{STATE}"] = run.described(position)
        groups = [(encode(options, "the optimizer's groups"), names) for options, names in state.groups]
        return _Told([one.described() for one in held], state.numbers, groups)

    told = together(topology, "The training's state cannot be kept in a checkpoint", tell)
    tasks = share_out([one.tensors for one in told], topology)
    planned = _planned(run, tasks, learnt)
    documents |= {index: index_of(shards, run.names) for index, shards in planned.items()}
    if len(planned.get(_MODEL_INDEX, [])) == 1:
        del documents[_MODEL_INDEX]  # as Hugging Face's folders have it
    if learnt is not None:
        documents[f"{TRAINING}/{LEARNT}"] = {"updates": learnt.updates}
    documents[f"{TRAINING}/{NUMBERS}"] = {
        "groups": _merged_groups(one.groups for one in told),
        "numbers": _merged_numbers(one.numbers for one in told),
    }
    files = _copied(run, tasks, held, [shard for shards in planned.values() for shard in shards])
    of_this_rank = {**take_random_numbers(topology.device), **{k: t.cpu().clone() for k, t in state.bound.items()}}
    files[rank_file(topology.rank)] = {name: Content(tensor) for name, tensor in of_this_rank.items()}
    layout = {**run.layout, "world_size": topology.world_size}
    return Snapshot(files, documents, position.finished - 1, layout, _ModelFiles(run))


def _planned(run: Run, tasks: list[Task], learnt: AdapterState | None) -> dict[str, list[Shard]]:
    """Return the files of all tensors, by the path of the index that names them."""
    of_adapter = learnt.tensors.keys() if learnt is not None else set()

    def files(stem: str, chosen: Callable[[Task], bool]) -> list[Shard]:
        return plan_shards([task for task in tasks if chosen(task)], stem, run.topology.world_size)

    stem, index = ("model", _MODEL_INDEX) if not run.adapter_alone else (f"{TRAINING}/adapter", _ADAPTER)
    planned = {index: files(stem, lambda task: task.key == WEIGHT)}
    if learnt is not None:
        planned[f"{TRAINING}/{LEARNT_INDEX}"] = files(
            f"{TRAINING}/adapter_state", lambda task: (task.name, task.key) in of_adapter
        )
    planned[f"{TRAINING}/{INDEX}"] = files(
        f"{TRAINING}/optimizer", lambda task: task.key != WEIGHT and (task.name, task.key) not in of_adapter
    )
    return planned


def rank_file(rank: int) -> str:
    """The path of what belongs to one rank."""
    return f"{TRAINING}/rank-{rank:05d}.safetensors"


class _ModelFiles:
    """What makes a folder of weights one of Hugging Face's: config.json, and what else its source has."""

    def __init__(self, run: Run) -> None:
        self._description: Description | None = None
        self._configs: list[Any] = []
        if run.topology.rank != 0:
            return
        model: Any = getattr(run.model, "get_base_model", lambda: run.model)()  # of PEFT's wrapper
        if isinstance(model, CollieModelForCausalLM):
            self._description = model.description()
            return
        config: Any = copy.deepcopy(getattr(model, "config", None))
        if hasattr(config, "save_pretrained"):
            config.architectures = [type(model).__name__]
            self._configs = [config, getattr(model, "generation_config", None)]

    def write(self, folder: Path) -> None:
        if self._description is not None:
            write_description(folder, self._description)
        for config in self._configs:
            if config is not None:
                config.save_pretrained(folder)


def _buffers(run: Run) -> list[Held]:
    return [held_whole(name, WEIGHT, buffer) for name, buffer in run.buffers.items()]


def _copied(run: Run, tasks: list[Task], held: list[Held], shards: list[Shard]) -> dict[str, dict[str, Content]]:
    """Return this rank's tensors by file, with the row order of checkpoints."""
    place = {(task.name, task.key): shard.name for shard in shards for task in shard.tasks}
    files: dict[str, dict[str, Content]] = {}
    for task, tensor in assemble(tasks, held, run.topology):
        rows = None
        if not task.key.startswith(FIXED):
            _, rows = file_order(run.names, run.model_config, task.name, tensor.shape)
        file = files.setdefault(place[task.name, task.key], {})
        file[name_in_file(task, run.names)] = Content(tensor, rows)
    return files


def _merged_numbers(told: Iterable[_Numbers]) -> dict[str, dict[str, Any]]:
    """Return every parameter's numbers, as JSON values."""
    merged: dict[str, dict[str, Any]] = {}
    for numbers in told:
        for name, by_key in numbers.items():
            for key, number in by_key.items():
                dtype = str(number.dtype).removeprefix("torch.") if number.dtype is not None else None
                merged.setdefault(name, {}).setdefault(key, [encode(number.value, name), dtype])
    return merged


def _merged_groups(told: Iterable[_Groups]) -> list[dict[str, Any]]:
    """Return the param groups of all stages: those with equal options are one."""
    merged: list[dict[str, Any]] = []
    for groups in told:
        for options, names in groups:
            group = next((one for one in merged if one["options"] == options), None)
            if group is None:
                merged.append(group := {"options": options, "parameters": []})
            known = set(group["parameters"])
            group["parameters"] += [name for name in names if name not in known]
    return merged


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
