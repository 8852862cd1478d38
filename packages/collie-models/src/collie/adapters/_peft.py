"""Saving and loading adapters, of CoLLiE's own models and of transformers' models that PEFT has wrapped."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from collie.adapters._adapter import adapter_of
from collie.adapters._attach import add_adapter
from collie.adapters._files import adapter_folder, read_adapter, read_config, write_adapter, write_files
from collie.adapters._prompts import prompts_of, read_prompts, refuse_training_of_saved, wrap_with_prompts
from collie.adapters._supported import PROMPTS, kind_of, peft_module, refuse_unsupported
from collie.config import CollieConfig
from collie.interfaces import CheckpointError, ConfigError
from collie.models import CollieModelForCausalLM, is_quantized, keep_trainable
from collie.parallel import Fill, active_topology, full_parameters, refill, together


def save_peft(model: nn.Module, path: str | Path, adapter_name: str = "default") -> None:
    """Write a model's adapter as PEFT does, in any layout: adapter_config.json, adapter_model.safetensors. Collective.

    Modules are called as in transformers' model: `PeftModel.from_pretrained(transformers_model, path)` loads it.

    Args:
        model: with an adapter; CoLLiE's own, or one of transformers in peft's get_peft_model.
        path: a folder, made where it is missing, or a URL that fsspec knows.
        adapter_name: which adapter.

    Raises:
        ConfigError: the model has no such adapter.
        CheckpointError: the file system refused; on every rank.
    """
    topology = active_topology()
    if isinstance(model, CollieModelForCausalLM):
        adapter = adapter_of(model)
        if adapter is None or adapter.name != adapter_name:
            raise ConfigError(f"save_peft: the model has no adapter {adapter_name!r}{_which(adapter)}.")
        write_adapter(model, adapter, path, topology)
    else:
        _save_wrapped(model, path, adapter_name)
    topology.barrier()


def load_peft(
    model: nn.Module,
    config: CollieConfig,
    path: str | Path,
    adapter_name: str = "default",
    is_trainable: bool = False,
) -> nn.Module:
    """Give a model the adapter that PEFT or `save_peft` wrote, in any layout, and return the model. Collective.

    A model that has an adapter of this name keeps its layers, and gets the values alone. One without gets the layers,
    too, and must not have an optimizer yet.

    Args:
        model: CoLLiE's own, changed in place; or one of transformers, which comes back as a PeftModel.
        config: the run's.
        path: the folder, or a URL that fsspec knows.
        adapter_name: what the adapter is called from now on.
        is_trainable: whether a new adapter's parameters are trained.

    Raises:
        CheckpointError: there is no adapter, or it does not fit the model; on every rank.
        ConfigError: as for `add_adapter`.
    """
    with adapter_folder(path, active_topology()) as folder:
        return _load(model, config, folder, adapter_name, is_trainable)


def _load(model: nn.Module, config: CollieConfig, folder: Path, adapter_name: str, is_trainable: bool) -> nn.Module:
    if not isinstance(model, CollieModelForCausalLM):
        return _load_wrapped(model, folder, adapter_name, is_trainable)
    if model.collie_config is not config:
        config.validate(active_topology().world_size)
    adapter = adapter_of(model)
    if adapter is None:
        peft_config = read_config(folder)
        peft_config.inference_mode = not is_trainable
        if kind_of(peft_config) in PROMPTS:
            return _load_prompts(model, peft_config, folder, adapter_name)
        add_adapter(model, peft_config, adapter_name)
        adapter = adapter_of(model)
    elif adapter.name != adapter_name:
        raise ConfigError(f"load_peft: the model has no adapter {adapter_name!r}{_which(adapter)}. Merge that first.")
    assert adapter is not None
    stored, topology, dtype = adapter.stored, active_topology(), model.dtype
    fills: list[Fill] = []  # they stay on their ranks
    together(topology, f"{folder} could not be read", lambda: fills.append(read_adapter(folder, stored, dtype)))
    refill(model, topology, fills[0], only=lambda name, parameter: name in stored)
    return model


def prepare_to_train(model: nn.Module, config: CollieConfig, optimizer: Any = None) -> None:
    """Refuse to train a model without the adapter that it needs, and let bitsandbytes' maps stay trainable.

    Raises:
        ConfigError: `peft_config` asks for an adapter, and the model has none; or its weights are quantized, and it has
            none; or it is AdaLoRA's around a model of transformers, or under an optimizer that owns the backward pass.
    """
    for asked in getattr(model, "peft_config", {}).values():
        if kind_of(asked) == "ADALORA":
            raise ConfigError(
                "AdaLoRA in PEFT's wrapper needs its update_and_allocate after each step, which the Trainer does for "
                "CoLLiE's own models alone. Use one of these, or LoRA."
            )
    adapter = adapter_of(model)
    if adapter is not None and kind_of(adapter.config) == "ADALORA" and hasattr(optimizer, "fused_backward"):
        raise ConfigError(
            f"{type(optimizer).__name__} updates while gradients are computed, and AdaLoRA weighs those of a whole "
            f"step. Use an optimizer of torch, or LoRA."
        )
    keep_trainable(model)
    quantized = is_quantized(model)
    if not (config.uses_peft or quantized) or adapter is not None or hasattr(model, "peft_config"):
        return
    if quantized:
        raise ConfigError(
            "quantized weights are not trained, and the model has no adapter. Set peft_config before from_pretrained, "
            "or wrap a model of transformers in peft.get_peft_model, before the optimizer."
        )
    raise ConfigError(
        f"peft_config asks for {kind_of(config.peft_config)}, and the model has no adapter. Make CoLLiE's own with "
        f"from_pretrained(path, config), and one of transformers with peft.get_peft_model(model, config.peft_config), "
        f"before the optimizer."
    )


def refuse_wrapper(model: nn.Module, doing: str) -> None:
    """Refuse to write a model that PEFT has wrapped as if it were a plain one.

    Raises:
        ConfigError: it is a PeftModel; `doing` begins the sentence.
    """
    if hasattr(model, "peft_config"):
        raise ConfigError(
            f"{doing}: the model has an adapter of PEFT, which is no part of its weights. Save the adapter with "
            f"save_peft, or train on and merge it with PEFT's merge_and_unload afterwards."
        )


def _which(adapter: Any) -> str:
    return f", but {adapter.name!r}" if adapter is not None else ""


def _load_prompts(model: CollieModelForCausalLM, peft_config: Any, folder: Path, adapter_name: str) -> nn.Module:
    refuse_unsupported(peft_config, model.collie_config)
    if not peft_config.inference_mode:
        refuse_training_of_saved(peft_config)
    return wrap_with_prompts(model, peft_config, adapter_name, read_prompts(folder))


def _save_wrapped(model: nn.Module, path: str | Path, adapter_name: str) -> None:
    """Save what peft's get_peft_model made: its parameters are gathered on rank 0 where ZeRO-3 has split them."""
    peft, topology = peft_module(), active_topology()
    if not isinstance(model, peft.PeftModel) or adapter_name not in model.peft_config:
        raise ConfigError(f"save_peft: this {type(model).__name__} has no adapter {adapter_name!r} of PEFT.")
    config = model.peft_config[adapter_name]
    state: dict[str, Tensor] = {}
    if config.is_prompt_learning:
        prompts = prompts_of(model, adapter_name, topology)
    else:
        chosen = full_parameters(
            model, topology, only=lambda name, parameter: parameter.requires_grad or adapter_name in name.split(".")
        )
        state = {name: whole for name, whole in chosen if whole is not None}

    def work() -> None:
        if topology.rank != 0:
            return
        tensors = prompts if config.is_prompt_learning else peft.get_peft_model_state_dict(model, state, adapter_name)
        values = {key: tensor.contiguous() for key, tensor in tensors.items()}
        write_files(path, values, config.to_dict() | {"inference_mode": True})

    together(topology, f"The adapter could not be saved to {path}", work)


def _load_wrapped(model: nn.Module, folder: Path, adapter_name: str, is_trainable: bool) -> nn.Module:
    peft = peft_module()
    if not (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"{folder} holds no adapter: it has no adapter_config.json.")
    if isinstance(model, peft.PeftModel):
        model.load_adapter(str(folder), adapter_name, is_trainable=is_trainable)
        return model
    loaded: nn.Module = peft.PeftModel.from_pretrained(model, str(folder), adapter_name, is_trainable=is_trainable)
    return loaded
