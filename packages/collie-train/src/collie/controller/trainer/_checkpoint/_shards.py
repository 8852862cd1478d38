"""Which file of a checkpoint each tensor goes into: planned by every rank alike, before any is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from collie.models.weights import StateNames, state_name
from collie.parallel import WEIGHT, Task

_SHARD_BYTES = 5 * 10**9  # as transformers' save_pretrained has it


@dataclass(frozen=True)
class Shard:
    """A file of tensors, and the rank that writes it. name: its path in the checkpoint."""

    name: str
    writer: int
    tasks: tuple[Task, ...]


def plan_shards(tasks: Sequence[Task], stem: str, ranks: int, limit: int = _SHARD_BYTES) -> list[Shard]:
    """Divide each rank's tensors into files of at most `limit` bytes, except for a single tensor that is larger."""
    parts: list[tuple[int, list[Task]]] = []
    for writer in range(ranks):
        size, held = 0, list[Task]()
        for task in (task for task in tasks if task.writer == writer):
            if held and size + task.any.nbytes > limit:
                parts.append((writer, held))
                size, held = 0, []
            size += task.any.nbytes
            held.append(task)
        if held:
            parts.append((writer, held))
    if len(parts) == 1:
        return [Shard(f"{stem}.safetensors", parts[0][0], tuple(parts[0][1]))]
    return [
        Shard(f"{stem}-{number + 1:05d}-of-{len(parts):05d}.safetensors", writer, tuple(held))
        for number, (writer, held) in enumerate(parts)
    ]


def name_in_file(task: Task, names: StateNames) -> str:
    """What a tensor is called in its file."""
    source, _ = names.to_checkpoint(task.name)
    return source if task.key == WEIGHT else state_name(task.key, source)


def index_of(shards: Sequence[Shard], names: StateNames) -> dict[str, Any]:
    """Return the contents of an index: the file of each tensor, beside it."""
    weight_map = {name_in_file(task, names): shard.name.rpartition("/")[2] for shard in shards for task in shard.tasks}
    size = sum(task.any.nbytes for shard in shards for task in shard.tasks)
    return {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
