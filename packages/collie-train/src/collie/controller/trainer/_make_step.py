"""Which kind of step a run makes: decided once, by the optimizer and the layout."""

import torch
from torch import nn

from collie.config import CollieConfig
from collie.controller.trainer._frozen import check_trainable
from collie.controller.trainer._objective import Objective, UserStep
from collie.controller.trainer._pipeline import EngineUpdate, FusedUpdate, PipelineStep, RelayStep, Update
from collie.controller.trainer._steps import FusedStep, PlainStep, Step
from collie.controller.trainer._tied_groups import group_alike
from collie.interfaces import ConfigError
from collie.models import CollieModelForCausalLM
from collie.optim import FusedOptimizer
from collie.parallel import Engine, Topology, engine_for


def make_step(
    model: nn.Module,
    config: CollieConfig,
    optimizer: torch.optim.Optimizer | None,
    objective: Objective,
    topology: Topology,
) -> Step | None:
    """Return what makes one update of `model`; None where neither the caller nor ds_config has an optimizer.

    Raises:
        ConfigError: ds_config, the optimizer or what is frozen does not suit the layout.
    """
    fused = optimizer if isinstance(optimizer, FusedOptimizer) else None
    if fused is not None:
        _prepare_for_fused_updates(model, config, fused, topology)
        _refuse_ignored_precision(config, fused)
    elif optimizer is None and "optimizer" not in config.deepspeed:
        return None
    if fused is None and topology.pp_size > 1 and model_dtype(model) is torch.float16:
        raise ConfigError(
            f"pp_size={topology.pp_size}: a pipeline that DeepSpeed steps does not scale losses, which float16 needs. "
            "Use bf16 in ds_config, pp_size=1, or an optimizer that scales them itself: Lomo or AdaLomo."
        )
    if topology.pp_size > 1 and isinstance(model, CollieModelForCausalLM):
        check_trainable(model, topology)
        if optimizer is not None:
            group_alike(model, optimizer, topology)
    engine = engine_for(model, config, optimizer, trains=True) if fused is None else None
    if topology.pp_size > 1 and isinstance(model, CollieModelForCausalLM):
        return _pipelined(model, engine, fused, objective, topology)
    if fused is not None:
        return FusedStep(model, fused, objective, topology)
    assert engine is not None
    return PlainStep(engine, objective, topology)


def _refuse_ignored_precision(config: CollieConfig, fused: FusedOptimizer) -> None:
    """Refuse what ds_config says about loss scaling where DeepSpeed scales no losses."""
    said = sorted(set(config.deepspeed.get("fp16") or {}) - {"enabled", "auto_cast"})
    if said:
        raise ConfigError(
            f"ds_config['fp16'][{said[0]!r}] is for optimizers that DeepSpeed steps, and {type(fused).__name__} scales "
            f"losses itself. Take it out, and give the optimizer's loss_scale_args or loss_scale instead."
        )


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a model's weights."""
    return next(model.parameters()).dtype


def _prepare_for_fused_updates(
    model: nn.Module, config: CollieConfig, optimizer: FusedOptimizer, topology: Topology
) -> None:
    """Bring a model that CoLLiE did not make to its device and, under ZeRO-3, to its shards."""
    if config.on_nan == "skip":
        raise ConfigError(
            f"on_nan='skip' leaves an update out whose gradients are not finite, and {type(optimizer).__name__} has "
            f"made most of it by the time the last of them is known. Use on_nan='stop'."
        )
    for key in ("gradient_clipping", "optimizer", "scheduler"):
        if config.deepspeed.get(key):
            raise ConfigError(
                f"ds_config[{key!r}] is for optimizers that DeepSpeed steps, and {type(optimizer).__name__} "
                f"steps itself. Take it out, and give the optimizer's own arguments or lr_scheduler instead."
            )
    if not isinstance(model, CollieModelForCausalLM):
        model.to(topology.device)
        if config.zero_stage == 3:
            engine_for(model, config)


def _pipelined(
    model: CollieModelForCausalLM,
    engine: Engine | None,
    fused: FusedOptimizer | None,
    objective: Objective,
    topology: Topology,
) -> Step:
    update: Update
    if fused is not None:
        update = FusedUpdate(fused, model, topology)
    else:
        assert engine is not None
        update = EngineUpdate(engine)
    around = engine if engine is not None else model
    if isinstance(objective, UserStep):
        return RelayStep(around, update, objective, topology)
    return PipelineStep(model, around, update, objective, topology)
