"""One DeepSpeed engine a model: forward-only under ZeRO-3 at first, a training engine once an optimizer comes."""

import logging
import os
import sys
import warnings
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from collie.config import CollieConfig
from collie.interfaces import ConfigError, require
from collie.parallel._deepspeed_config import deepspeed_config
from collie.parallel._grid import Grid
from collie.parallel._guard import UpdateGuard
from collie.parallel._places import hold_places, release_places
from collie.parallel._tied import sum_grads_of_ends
from collie.parallel._topology import Topology, active_topology, setup_distribution

_engines: WeakKeyDictionary[nn.Module, "Engine"] = WeakKeyDictionary()


def deepspeed_module() -> ModuleType:
    """Import DeepSpeed as this package needs it: quiet, and without compiling its CPU collectives.

    Raises:
        MissingExtraError: DeepSpeed is not installed.
    """
    os.environ.setdefault("LOCAL_RANK", str(active_topology().local_rank))  # it reads this even in a world of one
    if active_topology().device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it found nothing better
    deepspeed = require("deepspeed", "collie-models[deepspeed]", "training with DeepSpeed")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    # what DeepSpeed would find by running compilers: its shared-memory collectives cost 42 s of gcc at the first start
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):  # torch 2.13 renames both; DeepSpeed calls these
        warnings.filterwarnings("ignore", category=FutureWarning, message=f".*{name}.*")
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=_backend(), verbose=False)
    return deepspeed


def _is_news(record: logging.LogRecord) -> bool:
    """Drop DeepSpeed's warning about optimizers that it did not test: `_refuse_unsound` has looked at them."""
    return "untested optimizer" not in record.getMessage()


def _backend() -> str:
    return "nccl" if active_topology().device.type == "cuda" else "gloo"


class Engine:
    """A model with DeepSpeed around it: call it, `backward(loss)`, `step()`; `module` is the model."""

    def __init__(
        self,
        model: nn.Module,
        config: CollieConfig,
        topology: Topology,
        optimizer: torch.optim.Optimizer | None,
        trains: bool,
    ) -> None:
        self.module = model
        self.trains = trains
        self.topology = topology
        self.zero_stage: int = config.zero_stage
        self.settings = engine_settings(model, config, optimizer, trains)
        _refuse_unsound(optimizer, self.settings, topology)
        if optimizer is not None:
            _refuse_strangers(optimizer, model)
        deepspeed = deepspeed_module()
        grid = Grid(topology) if topology.model_group is not None else None
        deepspeed.utils.groups.mpu = grid  # DeepSpeed would go on with that of an earlier engine
        self._places = hold_places(model, optimizer) if trains and topology.pp_size > 1 else None
        bare = self.zero_stage == 0 and next(model.parameters()).dtype is torch.float32
        max_norm = float(self.settings["gradient_clipping"])
        settings = {**self.settings, "gradient_clipping": 0.0} if bare else dict(self.settings)  # the guard clips
        try:
            self._deepspeed, *_ = deepspeed.initialize(
                model=self._places or model, optimizer=optimizer, config=settings, mpu=grid
            )
        except (ValueError, AssertionError, TypeError) as error:  # what DeepSpeed raises for values that it cannot use
            raise ConfigError(f"ds_config is refused by DeepSpeed: {_gist(error)}. Change that value.") from error
        self.optimizer: torch.optim.Optimizer | None = optimizer or getattr(self._deepspeed, "basic_optimizer", None)
        self._guard: UpdateGuard | None = None
        if bare and self.optimizer is not None:
            self._guard = UpdateGuard(self.optimizer, topology, max_norm, leaves_out=config.on_nan == "skip")
        stepped = getattr(self._deepspeed.optimizer, "optimizer", None)
        _share_groups(self.optimizer, stepped, scheduled=self._deepspeed.lr_scheduler is not None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._deepspeed(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_deepspeed":  # not made yet: initialize failed
            raise AttributeError(name)
        return getattr(self._deepspeed, name)  # scripts written for DeepSpeed's engine find all of it

    def train(self, mode: bool = True) -> "Engine":
        """Put the model in training (or evaluation) mode."""
        self.module.train(mode)
        return self

    def eval(self) -> "Engine":
        """Put the model in evaluation mode."""
        return self.train(False)

    def backward(self, loss: Tensor) -> None:
        """Backpropagate one micro-batch's loss; DeepSpeed divides it by the accumulation steps and averages over dp.

        The loss may come of the model itself, as a user's train_fn calls it: that another micro-batch has begun
        DeepSpeed sees in its own forward alone, without which ZeRO-3 would put gradients in the place of the last
        micro-batch's.
        """
        begin = getattr(self._deepspeed.optimizer, "clear_backward_seen_flag", None)
        if begin is not None:
            begin()  # does nothing where the engine's forward has
        self._deepspeed.backward(loss)

    def step(self) -> bool:
        """Update after the last micro-batch of a step; return whether an update was made.

        With pipeline stages each call is one step, after one or several backward passes.

        None is made where the gradient is not finite: fp16 looks for its loss scale so, and DeepSpeed leaves such
        updates out under ZeRO and in bf16. Without ZeRO in float32 it is the config's on_nan="skip" that does.
        """
        if self._places is not None:
            self._places.backward()
        sum_grads_of_ends(self.module, self.topology)
        self._deepspeed.step()
        return bool(self._deepspeed.was_step_applied()) and not (self._guard is not None and self._guard.left_out)

    def grad_norm(self) -> float | None:
        """Return the norm of the last step's gradient before clipping, equal on every rank.

        Infinite where an update was left out; None before the first, and where ds_config says not to compute it.
        """
        norm = self._deepspeed.get_global_grad_norm()
        if norm:  # DeepSpeed says None or 0 where it has none
            return float(norm)
        return self._guard.norm() if self._guard is not None else None

    @property
    def around_optimizer(self) -> Any:
        """What DeepSpeed put around `optimizer`: itself where it put nothing, None where the engine has none."""
        return self._deepspeed.optimizer

    def release_parameters(self) -> None:
        """ZeRO-3: return every gathered parameter to its shards."""
        if self.zero_stage == 3:
            owner = self._deepspeed.optimizer
            getattr(owner, "parameter_offload", owner).partition_all_parameters()

    def refresh_master_weights(self) -> None:
        """Copy the model's weights into the optimizer's own copies: call after the weights were replaced."""
        refresh = getattr(self._deepspeed.optimizer, "refresh_fp32_params", None)
        if refresh is not None:
            refresh()

    def write_master(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Give the optimizer's own copy of a parameter, where it has one, the values that the parameter was given.

        Collective over the dp ranks; `value` is the whole parameter, of which each may hold a part.
        """
        if hasattr(parameter, "ds_id") or getattr(parameter, "_hp_mapping", None) is not None:
            deepspeed_module().utils.safe_set_full_fp32_param(parameter, value)

    def close(self) -> None:
        """Take DeepSpeed's hooks off the model; the parameters stay as they are."""
        if self._guard is not None:
            self._guard.remove()
        if self._places is not None and self.optimizer is not None:
            release_places(self._places, self.optimizer)
        self._deepspeed.destroy()


def engine_for(
    model: nn.Module,
    config: CollieConfig,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    trains: bool | None = None,
) -> Engine:
    """Return the engine of `model`, made when needed: exactly one a model.

    A forward-only engine (ZeRO-3 without an optimizer) is replaced when an optimizer comes. Asking again with the
    same optimizer and settings gives the same engine; another optimizer or other settings give a new one.

    Args:
        model: the model, its parameters in one dtype.
        config: sizes, accumulation and ds_config.
        optimizer: what the engine steps; None for a forward-only engine.
        trains: True with `optimizer=None` takes the optimizer that ds_config describes.

    Raises:
        ConfigError: the optimizer's update is not sound on flat shards, or ds_config does not fit.
        MissingExtraError: DeepSpeed is not installed.
    """
    trains = optimizer is not None if trains is None else trains
    current = current_engine(model)
    if current is not None:
        same_optimizer = optimizer is None or current.optimizer is optimizer
        wanted = engine_settings(model, config, optimizer, trains)
        if same_optimizer and current.trains >= trains and (current.settings == wanted or not trains):
            return current
        current.release_parameters()
        current.close()
    engine = Engine(model, config, setup_distribution(config), optimizer, trains)
    _engines[model] = engine
    return engine


def current_engine(model: nn.Module) -> Engine | None:
    """Return the engine of `model`, or None where it has none."""
    return _engines.get(model)


def close_engine(model: nn.Module) -> None:
    """End the engine of `model`, if it has one: the next `engine_for` makes another."""
    engine = _engines.pop(model, None)
    if engine is not None:
        engine.release_parameters()
        engine.close()


def release_parameters(model: nn.Module) -> None:
    """Let go of every parameter that ZeRO-3 still holds gathered, so that the next use gathers it with its new values.

    Needed after shards were changed in a backward pass: a module whose inputs need no gradient (the embedding) has
    no hook that releases it, and small parameters stay gathered by design.
    """
    engine = current_engine(model)
    if engine is not None:
        engine.release_parameters()


def engine_settings(
    model: nn.Module, config: CollieConfig, optimizer: torch.optim.Optimizer | None, trains: bool
) -> dict[str, Any]:
    """Return DeepSpeed's settings for this engine: without those of an optimizer where it gets one, or needs none."""
    settings = deepspeed_config(config, next(model.parameters()).dtype)
    if optimizer is not None or not trains:
        settings.pop("optimizer", None)
    if not trains:
        settings.pop("scheduler", None)
    if config.pp_size > 1:  # the pipeline adds up a step's gradients, and DeepSpeed sees them when it steps
        settings |= {"gradient_accumulation_steps": 1, "managed_gradient_accumulation": False}
    return _with_exact_norms(settings, config) if trains else settings


def _with_exact_norms(settings: dict[str, Any], config: CollieConfig) -> dict[str, Any]:
    """Make stage 0 in half precision a stage 1 where several ranks hold a replica: the same update.

    DeepSpeed's stage 0 flattens the gradients there, forgets which rank counts which, and clips by the norm of the
    first rank's alone. Its stage 1 divides the optimizer's states over dp besides.
    """
    half = settings.get("bf16", {}).get("enabled") or settings.get("fp16", {}).get("enabled")
    if not half or config.pp_size * config.tp_size == 1 or settings["zero_optimization"]["stage"] > 0:
        return settings
    return settings | {"zero_optimization": {**settings["zero_optimization"], "stage": 1}}


def _refuse_unsound(optimizer: torch.optim.Optimizer | None, settings: dict[str, Any], topology: Topology) -> None:
    """Refuse an optimizer whose update would not be what it is on whole parameters.

    ZeRO gives an optimizer flat shards, tensor parallelism parts: fine for an update of single elements. What an
    optimizer of ours states in `needs_whole_model` bars pipeline stages, too.
    """
    stage: int = settings["zero_optimization"]["stage"]
    asked = dict(settings.get("optimizer") or {}).get("type", "")
    name = type(optimizer).__name__ if optimizer is not None else asked
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError(f"optimizer={name} needs a closure over the loss, which a step does not give. Use AdamW.")
    pieces = [f"ZeRO stage {stage}"] * (stage > 0) + [f"tp_size={topology.tp_size}"] * (topology.tp_size > 1)
    whole_tensor = isinstance(optimizer, _whole_tensor_optimizers()) or asked.lower() in ("lamb", "muon")
    if whole_tensor and pieces:
        raise ConfigError(
            f"optimizer={name} computes statistics of whole tensors, and {pieces[0]} gives it pieces of them. Use an "
            f"elementwise optimizer such as AdamW, or tp_size=1 and stage 0 (in bf16 and fp16 without pp)."
        )
    reason: str | None = getattr(optimizer, "needs_whole_model", None)
    pieces += [f"pp_size={topology.pp_size}"] * (topology.pp_size > 1)
    if reason and pieces:
        raise ConfigError(
            f"optimizer={name} {reason}, and {pieces[0]} gives it pieces. "
            f"Use ZeRO stage 0 with tp_size=1 and pp_size=1, or an elementwise optimizer such as AdamW or Lion."
        )


def _refuse_strangers(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that has only other parameters than the model's: it would train nothing.

    DeepSpeed leaves one so under ZeRO and in half precision: with flat copies of its own, of which the next engine
    knows nothing.
    """
    own = set(model.parameters())
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if held and not any(parameter in own for parameter in held):
        raise ConfigError(
            f"optimizer={type(optimizer).__name__} has none of the model's parameters. An engine that had it before, "
            f"under ZeRO or in bf16 or fp16, put its own flat copies in their place; or they are another model's. "
            f"Make a new optimizer over model.parameters()."
        )


def _whole_tensor_optimizers() -> tuple[type, ...]:
    """The optimizers of torch, and of transformers where it is loaded, that factor or orthogonalise matrices."""
    of_transformers = getattr(sys.modules.get("transformers.optimization"), "Adafactor", None)
    found = (torch.optim.Adafactor, getattr(torch.optim, "Muon", None), of_transformers)
    return tuple(kind for kind in found if kind is not None)


def _share_groups(
    optimizer: torch.optim.Optimizer | None, stepped: torch.optim.Optimizer | None, scheduled: bool
) -> None:
    """Let what DeepSpeed steps have the groups and states of the optimizer that schedulers and checkpoints know.

    Under ZeRO it makes torch's Adagrad anew (0.19.8), in one group of default options, whose learning rate nobody
    sets but ds_config's scheduler.
    """
    if optimizer is None or stepped is None or stepped is optimizer:
        return
    if scheduled:
        for group in optimizer.param_groups:
            group["lr"] = stepped.param_groups[0]["lr"]
    stepped.param_groups = optimizer.param_groups
    optimizer.state = stepped.state


def _gist(error: Exception) -> str:
    """The gist of an error that may be long: its first three lines, in one."""
    return "; ".join(line.strip() for line in str(error).splitlines()[:3] if line.strip()).rstrip(".")
