"""What a Trainer makes of its arguments before the first step, and what it refuses of them."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from collie.config import CollieConfig
from collie.data import CollieDataLoader, CollieStream, check_rows
from collie.interfaces import CheckpointError, ConfigError, DataError
from collie.models import CollieModelForCausalLM
from collie.parallel import Topology, together

_ROWS_TO_CHECK = 256
Result = TypeVar("Result")


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


def check_training_rows(dataset: Any, topology: Topology) -> None:
    """Look at rows before any rank works: at all of a list, at the first ones of what may be slow to read.

    Collective: a row that one rank alone cannot use, of a file of its own, ends all.
    """
    _on_every_rank(topology, lambda: _check(dataset))


def _check(dataset: Any) -> None:
    if isinstance(dataset, CollieStream):
        dataset.check()
    elif isinstance(dataset, list | tuple):
        check_rows(dataset)
    elif hasattr(dataset, "__len__"):
        check_rows(dataset, limit=_ROWS_TO_CHECK)


def make_loader(
    dataset: Any, config: CollieConfig, topology: Topology, collate: Callable[..., Any]
) -> CollieDataLoader | None:
    """Return this replica's loader of training rows, ordered by the config's seed; None without rows. Collective.

    Raises:
        DataError: a rank has other rows, or more or fewer: it would wait for steps that the others do not make.
    """
    loaders: list[CollieDataLoader | None] = []

    def make() -> tuple[int, str] | None:
        loaders.append(None if dataset is None else _loader(dataset, config, topology, collate))
        return (loaders[0].rows, loaders[0].order) if loaders[0] is not None else None

    everyones = _on_every_rank(topology, make)
    for rank, (first, other) in enumerate(zip(everyones[:1] * len(everyones), everyones, strict=True)):
        if other != first:
            raise DataError(
                f"train_dataset is not the same on every rank: {_described(first)} on rank 0, {_described(other)} on "
                f"rank {rank}. Give each rank the whole of it, in the same order; the loader takes each rank's share."
            )
    return loaders[0]


def _described(data: tuple[int, str] | None) -> str:
    return "none" if data is None else f"{data[0]} rows ({data[1]})"


def _loader(dataset: Any, config: CollieConfig, topology: Topology, collate: Callable[..., Any]) -> CollieDataLoader:
    return CollieDataLoader(
        dataset,
        batch_size=config.train_micro_batch_size,
        accumulation_steps=config.gradient_accumulation_steps,
        shuffle=not config.group_by_length,
        collate_fn=collate,
        num_workers=config.dataloader_num_workers,
        group_by_length=config.group_by_length,
        seed=config.seed,
        dp_rank=topology.dp_rank,
        dp_size=topology.dp_size,
    )


def _on_every_rank(topology: Topology, work: Callable[[], Result]) -> list[Result]:
    """What `work` gave on each rank. Where it fails on one, that raises its own error, and the others a DataError."""
    try:
        return together(topology, "train_dataset cannot be used", work)
    except CheckpointError as error:
        if error.__cause__ is not None:
            raise error.__cause__ from None
        raise DataError(str(error)) from None


def as_list(one_or_many: Any) -> list[Any]:
    """Return none, one or several of something as a list."""
    if one_or_many is None:
        return []
    return list(one_or_many) if isinstance(one_or_many, list | tuple) else [one_or_many]


def _is_ours(model: nn.Module) -> bool:
    inside: Any = getattr(model, "get_base_model", lambda: model)  # of PEFT's wrapper
    return isinstance(inside(), CollieModelForCausalLM)
