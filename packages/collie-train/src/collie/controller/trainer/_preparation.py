"""What a Trainer makes of its arguments before the first step, and what it refuses of them."""

from collections.abc import Callable
from typing import Any

from torch import nn

from collie.config import CollieConfig
from collie.data import CollieDataLoader, check_rows
from collie.interfaces import ConfigError
from collie.models import CollieModelForCausalLM
from collie.parallel import Topology

_ROWS_TO_CHECK = 256


def refuse_what_is_not_there(model: nn.Module, config: CollieConfig) -> None:
    """Say what this version does not do, before anything is begun."""
    if _is_ours(model):
        return
    for field in ("tp_size", "pp_size"):
        if getattr(config, field) > 1:
            raise ConfigError(
                f"{field}={getattr(config, field)} splits models of collie.models only, and this is a "
                f"{type(model).__name__}. Set {field} to 1, and use ZeRO."
            )
    if config.dropout:
        raise ConfigError(
            f"dropout={config.dropout} reaches models of collie.models only, and this is a {type(model).__name__}. "
            f"Set dropout to 0.0, and the model's own in its config."
        )


def enable_checkpointing(model: nn.Module, config: CollieConfig) -> None:
    """Switch checkpointing on in a model that CoLLiE did not make, and that can; ours read the config themselves."""
    enable: Any = getattr(model, "gradient_checkpointing_enable", None)
    if not config.checkpointing or enable is None or _is_ours(model):
        return
    # frozen weights that ZeRO-3 splits are not there anymore when torch's newer way uses them: see models/_recompute.py
    reentrant = config.zero_stage == 3 and not all(parameter.requires_grad for parameter in model.parameters())
    if reentrant:
        model.enable_input_require_grads()  # type: ignore[operator]  # of a model that can be checkpointed
    enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})


def check_training_rows(dataset: Any) -> None:
    """Look at rows before any rank works: at all of a list, at the first ones of what may be slow to read."""
    if isinstance(dataset, list | tuple):
        check_rows(dataset)
    elif hasattr(dataset, "__len__"):
        check_rows(dataset, limit=_ROWS_TO_CHECK)


def make_loader(
    dataset: Any, config: CollieConfig, topology: Topology, collate: Callable[..., Any]
) -> CollieDataLoader | None:
    """Return this replica's loader of training rows, shuffled by the config's seed; None without rows."""
    if dataset is None:
        return None
    return CollieDataLoader(
        dataset,
        batch_size=config.train_micro_batch_size,
        accumulation_steps=config.gradient_accumulation_steps,
        shuffle=True,
        collate_fn=collate,
        num_workers=config.dataloader_num_workers,
        seed=config.seed,
        dp_rank=topology.dp_rank,
        dp_size=topology.dp_size,
    )


def as_list(one_or_many: Any) -> list[Any]:
    """Return none, one or several of something as a list."""
    if one_or_many is None:
        return []
    return list(one_or_many) if isinstance(one_or_many, list | tuple) else [one_or_many]


def _is_ours(model: nn.Module) -> bool:
    inside: Any = getattr(model, "get_base_model", lambda: model)  # of PEFT's wrapper
    return isinstance(inside(), CollieModelForCausalLM)
