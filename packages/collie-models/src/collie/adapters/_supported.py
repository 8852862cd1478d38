"""What of PEFT works on CoLLiE's own models, and what is said of the rest."""

from dataclasses import fields
from types import ModuleType
from typing import Any

from collie.config import CollieConfig
from collie.interfaces import ConfigError, ParallelSizeError, require

LORA = "LORA"
_ANYWHERE = {  # fields of every config that change nothing here
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config"),
}
_FIELDS = {
    LORA: {
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "lora_bias", "init_lora_weights"),
        *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"),
        *("rank_pattern", "alpha_pattern"),
    },
    "ADALORA": {
        *("lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform"),
        *("layers_pattern", "target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight"),
        *("total_step", "r"),
    },
    "IA3": {"target_modules", "feedforward_modules", "exclude_modules", "modules_to_save"},
}
PROMPTS = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING")  # parameters before the tokens, or in the cache
_INITIAL = (True, False, "gaussian")


def peft_module() -> ModuleType:
    """Import peft.

    Raises:
        MissingExtraError: it is not installed.
    """
    return require("peft", "collie-models[peft]", "peft_config")


def kind_of(peft_config: Any) -> str:
    """Return the name of a config's peft_type: "LORA" and the like."""
    kind = peft_config.peft_type
    return str(getattr(kind, "value", kind))


def refuse_unsupported(peft_config: Any, config: CollieConfig) -> None:
    """Say what an adapter cannot do on CoLLiE's own models in the run's layout.

    Raises:
        ConfigError: the kind, or one of its options, is not there.
        ParallelSizeError: the kind is there in other layouts.
    """
    kind = kind_of(peft_config)
    if kind not in (*_FIELDS, *PROMPTS):
        raise ConfigError(
            f"peft_type={kind!r} is not there for CoLLiE's own models. Use one of {', '.join((*_FIELDS, *PROMPTS))}, "
            f"or a model of transformers with peft.get_peft_model."
        )
    split = {field: getattr(config, field) for field in ("tp_size", "pp_size") if getattr(config, field) > 1}
    if split and kind != LORA:
        sizes = ", ".join(f"{name}={size}" for name, size in split.items())
        raise ParallelSizeError(
            f"peft_type={kind!r} with {sizes}: its parameters act on whole activations, which tensor-parallel ranks "
            f"and stages do not have. Set tp_size and pp_size to 1 and use ZeRO, or use LoRA."
        )
    if kind in PROMPTS:
        _refuse_prompt_options(peft_config, config)
    else:
        _refuse_options(peft_config, kind)


def _refuse_options(peft_config: Any, kind: str) -> None:
    standard = type(peft_config)(total_step=1) if kind == "ADALORA" else type(peft_config)()  # it must be given
    for field in fields(peft_config):
        name, asked = field.name, getattr(peft_config, field.name)
        usual = getattr(standard, name)
        if name in _FIELDS[kind] | _ANYWHERE or asked == usual or not (asked or usual):
            continue
        raise ConfigError(
            f"{name}={asked!r} in peft_config is not there for CoLLiE's own models. Leave it out, or use a model of "
            f"transformers with peft.get_peft_model."
        )
    initial = getattr(peft_config, "init_lora_weights", True)
    if initial not in _INITIAL:
        raise ConfigError(
            f"init_lora_weights={initial!r} changes or reads whole weights, which ranks do not hold. "
            f"Use one of {', '.join(map(repr, _INITIAL))}."
        )
    if getattr(peft_config, "use_dora", False) and (initial is False or peft_config.lora_bias):
        raise ConfigError(
            "use_dora=True: magnitudes begin as those of the weights alone, and a bias has none. "
            "Leave init_lora_weights and lora_bias as they are."
        )


def _refuse_prompt_options(peft_config: Any, config: CollieConfig) -> None:
    if getattr(peft_config, "modules_to_save", None):
        raise ConfigError("modules_to_save in peft_config: with prompts nothing else is trained. Leave it out.")
    initial = getattr(peft_config, "prompt_tuning_init", "RANDOM")
    if config.zero_stage == 3 and getattr(initial, "value", initial) != "RANDOM":
        raise ConfigError(
            f"prompt_tuning_init={getattr(initial, 'value', initial)!r} reads rows of the embedding, which ZeRO stage "
            f"3 has split. Use 'RANDOM', or stage 2."
        )
