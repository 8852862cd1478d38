"""What checkpoints need to know of a run, and what the Trainer keeps in them besides tensors."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from collie.adapters import Adapter, AdapterNames, adapter_of, wrapped_adapters
from collie.callbacks import CallbackManager
from collie.config import CollieConfig
from collie.controller.trainer._checkpoint._encode import encode
from collie.data import CollieDataLoader
from collie.models import CollieModelForCausalLM
from collie.models.weights import SameNames, StateNames
from collie.parallel import Topology, part_shape, scaler_state, set_scaler_state, whole_name


@dataclass
class Position:
    """Where a training stands between two steps.

    finished: steps since the first.
    epoch, step: of the next step; a step that is the epoch's length stands for the epoch's end.
    first_epoch: in which the running or last call of train began.
    """

    finished: int = 0
    epoch: int = 0
    step: int = 0
    first_epoch: int = 0


@dataclass
class Run:
    """A Trainer's parts. callbacks_of: hands the Trainer to its callbacks."""

    model: nn.Module
    config: CollieConfig
    topology: Topology
    tokenizer: Any
    engine: Any
    optimizer: torch.optim.Optimizer | None
    lr_scheduler: Any
    loader: CollieDataLoader | None
    callbacks: CallbackManager
    trainer: Any

    @property
    def adapter(self) -> Adapter | None:
        """The adapter of a model of ours. A checkpoint has it in the place of the weights, which stay as they were."""
        return adapter_of(self.model)

    @property
    def adapter_alone(self) -> bool:
        """Whether checkpoints have an adapter in the place of the model's weights: ours, or one in PEFT's wrapper."""
        return self.adapter is not None or wrapped_adapters(self.model) is not None

    @property
    def names(self) -> StateNames:
        """What names the model's tensors in its checkpoints."""
        if not isinstance(self.model, CollieModelForCausalLM):
            return SameNames(self.buffers)
        return self.model.names if self.adapter is None else AdapterNames(self.model.names, self.adapter.stored)

    def keeps(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a checkpoint has the values of a parameter, called so in the whole model."""
        if self.adapter is not None:
            return name in self.adapter.stored
        chosen = wrapped_adapters(self.model)
        return chosen is None or chosen(name, parameter)

    def adapter_shapes(self) -> dict[str, torch.Size]:
        """The shapes of what a checkpoint keeps of a model with an adapter, by name in the whole model."""
        if self.adapter is not None:  # this rank may have parts of them, or none
            return {name: stored.shape for name, stored in self.adapter.stored.items()}
        chosen = ((whole_name(name, p), p) for name, p in self.model.named_parameters())
        return {name: part_shape(parameter) for name, parameter in chosen if self.keeps(name, parameter)}

    @property
    def buffers(self) -> dict[str, torch.Tensor]:
        """The buffers that belong to a checkpoint of the model; CoLLiE's own models compute theirs from the config."""
        if isinstance(self.model, CollieModelForCausalLM) or self.adapter_alone:
            return {}
        saved = self.model.state_dict(keep_vars=True)
        return {name: buffer for name, buffer in self.model.named_buffers() if name in saved}

    @property
    def model_config(self) -> Any:
        return getattr(self.model, "config", None)

    @property
    def dtype(self) -> str:
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    @property
    def layout(self) -> dict[str, int]:
        """The sizes that decide which tensors ranks hold, and which random numbers they draw."""
        topology = self.topology
        return {
            "dp_size": topology.dp_size,
            "tp_size": topology.tp_size,
            "pp_size": topology.pp_size,
            "zero_stage": self.config.zero_stage,
        }

    def data(self) -> dict[str, Any] | None:
        """What decides which rows a step sees: rows of an epoch and of a step, the seed, and the order in words."""
        if self.loader is None:
            return None
        loader = self.loader
        return {
            "rows": loader.rows,
            "rows_per_step": loader.batch_size * loader.accumulation_steps * loader.dp_size,
            "seed": loader.seed,
            "order": loader.order,
        }

    def schedulers(self) -> dict[str, Any]:
        """The schedulers by what they are: the Trainer's, and one that DeepSpeed steps."""
        found = {"lr_scheduler": self.lr_scheduler, "ds_config's scheduler": _of_deepspeed(self.engine)}
        return {name: scheduler for name, scheduler in found.items() if hasattr(scheduler, "state_dict")}

    def scaler_state(self) -> dict[str, Any] | None:
        """How losses are scaled in float16: by a fused optimizer or by DeepSpeed; None where they are not."""
        own = getattr(self.optimizer, "loss_scaler", None)
        return dict(own.state_dict()) if own is not None else scaler_state(self.model)

    def set_scaler_state(self, state: dict[str, Any]) -> None:
        """Go on scaling as `scaler_state` said."""
        own = getattr(self.optimizer, "loss_scaler", None)
        if own is not None:
            own.load_state_dict(state)
        else:
            set_scaler_state(self.model, state)

    def described(self, position: Position) -> dict[str, Any]:
        """Return the state that is no tensor, as JSON values; for rank 0, after the callbacks of all ranks were asked.

        Raises:
            CheckpointError: a state holds what JSON cannot.
        """
        states = self.callbacks.on_save_checkpoint(self.trainer)
        return {
            "position": asdict(position),
            "data": self.data(),
            "dtype": self.dtype,
            "optimizer": kind_of(self.optimizer),
            "scaler": encode(self.scaler_state(), "the loss scaler"),
            "schedulers": {name: encode(one.state_dict(), name) for name, one in self.schedulers().items()},
            "callbacks": {name: encode(state, f"callback {name}") for name, state in states.items()},
        }


def kind_of(optimizer: torch.optim.Optimizer | None) -> str | None:
    """The name of an optimizer's class."""
    return type(optimizer).__qualname__ if optimizer is not None else None


def _of_deepspeed(engine: Any) -> Any:
    return getattr(engine, "lr_scheduler", None)
