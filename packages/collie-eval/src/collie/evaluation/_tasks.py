"""Tasks of lm-evaluation-harness, run on a CoLLiE model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collie.interfaces import ConfigError, require

if TYPE_CHECKING:
    from torch import nn

_EXTRA = "collie-eval[lm-eval]"


def needed() -> None:
    """Raises MissingExtraError, with the command that installs it, where lm-eval is not there."""
    require("lm_eval", _EXTRA, "lm-evaluation-harness")


def harness_model(model: "nn.Module", tokenizer: Any, batch_size: int = 1, max_length: int | None = None) -> Any:
    """`model` as an lm_eval.api.model.LM, for `lm_eval.simple_evaluate(model=…)`. Every rank makes one and runs it.

    Args:
        tokenizer: of transformers.
        batch_size: rows of one forward pass on each data-parallel replica.
        max_length: positions that a request may take; None means the model's own.

    Raises:
        MissingExtraError: lm-eval is not installed.
    """
    needed()
    from collie.evaluation._lm import CollieLM  # its classes derive from lm_eval's

    return CollieLM(model, tokenizer, batch_size, max_length)


def run_tasks(
    model: "nn.Module",
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    batch_size: int = 1,
    num_fewshot: int | None = None,
    limit: float | None = None,
    include_path: str | Path | None = None,
    include_defaults: bool = True,
    apply_chat_template: bool = False,
    max_length: int | None = None,
) -> dict[str, Any]:
    """Run tasks of lm-evaluation-harness. Collective: every rank calls it and gets the same.

    Args:
        tasks: names of tasks or groups.
        batch_size: rows of one forward pass on each data-parallel replica.
        num_fewshot: examples before each question; None means the task's own.
        limit: rows of each task, or below 1 their share.
        include_path: a folder with tasks of your own (YAML).
        include_defaults: whether the harness's own tasks can be named, too; finding them takes it some seconds.
        apply_chat_template: whether prompts go through the tokenizer's chat template.
        max_length: see `harness_model`.

    Returns:
        What the harness reports, in plain JSON: "results" (numbers by task and metric), "versions", "n-samples",
        "samples" (every request with its answer), and so on.

    Raises:
        MissingExtraError: lm-eval is not installed.
        ConfigError: there is no task of a name.
    """
    import torch.distributed as dist  # here: a command that only shows its help need not wait for torch

    from collie.parallel import active_topology

    lm = harness_model(model, tokenizer, batch_size, max_length)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import handle_non_serializable

    folder = str(include_path) if include_path is not None else None
    manager = TaskManager(include_path=folder, include_defaults=include_defaults)
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown or not tasks:
        raise ConfigError(f"tasks={','.join(unknown)!r}: lm-eval has none of that name; `lm-eval ls tasks` lists them.")
    report = simple_evaluate(
        model=lm,
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        limit=limit,
        task_manager=manager,
        apply_chat_template=apply_chat_template,
    )
    plain = json.loads(json.dumps(report, default=handle_non_serializable)) if report is not None else None
    topology = active_topology()
    if topology.world_size > 1:  # the harness reports on the first rank of each node
        box = [plain]
        dist.broadcast_object_list(box, src=0, device=topology.device)
        (plain,) = box
    assert isinstance(plain, dict)
    return plain
