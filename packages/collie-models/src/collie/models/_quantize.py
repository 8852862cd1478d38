"""Linear maps in 8 or 4 bits (Dettmers et al. 2022, 2023), to train an adapter around weights that stay as they are.

Each is read, quantized on the device and let go of before the next: a model in full precision never exists.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from collie.config import CollieConfig
from collie.interfaces import ConfigError, ParallelSizeError, require
from collie.parallel import Fill, Topology, materialise

if TYPE_CHECKING:
    from collie.models.base import CollieModelForCausalLM

_REFUSED = ("llm_int8_has_fp16_weight", "llm_int8_enable_fp32_cpu_offload")


def check_quantization(config: CollieConfig) -> None:
    """Say what cannot be done with quantized weights, before there are any.

    Raises:
        ParallelSizeError: tensor-parallel ranks cannot divide them.
        ConfigError: ZeRO stage 3 cannot either, or an option is not there.
        MissingExtraError: bitsandbytes is not installed.
    """
    if config.tp_size > 1:
        raise ParallelSizeError(
            f"quantization_config with tp_size={config.tp_size}: weights are quantized in blocks of a whole matrix, "
            f"which tensor-parallel ranks do not hold. Set tp_size to 1, and use dp_size or pp_size."
        )
    if config.zero_stage == 3:
        raise ConfigError(
            "quantization_config with ZeRO stage 3: packed weights have no slices to partition. Use stage 2 or less: "
            "of what is not trained, stages 1 and 2 keep no states anyway."
        )
    asked = config.quantization_config
    for option in _REFUSED:
        if getattr(asked, option, False):
            raise ConfigError(f"{option}=True in quantization_config is not there. Leave it out.")
    require("bitsandbytes", "collie-models[quant]", "quantization_config")


def quantize_on_the_way(model: "CollieModelForCausalLM", topology: Topology, dtype: torch.dtype, fill: Fill) -> None:
    """Put quantized maps in the place of a model's linear maps on `meta`, with their values; the head stays as it is.

    Args:
        model: on `meta`; this pipeline rank's stages.
        topology: where to.
        dtype: what the values are read in; biases stay in it.
        fill: gives the values, by the names in `model`.
    """
    asked = model.collie_config.quantization_config
    skipped = tuple(asked.llm_int8_skip_modules or ())
    for name, linear in list(model.named_modules()):
        if not name.startswith("layers.") or not isinstance(linear, nn.Linear) or _is_skipped(model, name, skipped):
            continue
        materialise(linear, model.collie_config, topology, dtype, partial(_within, fill, name))
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, _quantized(linear, asked, topology.device))


def _within(fill: Fill, module: str, name: str, *arguments: Any, **columns: Any) -> Tensor:
    return fill(f"{module}.{name}", *arguments, **columns)


def _is_skipped(model: "CollieModelForCausalLM", name: str, skipped: tuple[str, ...]) -> bool:
    """Whether llm_int8_skip_modules names a module, by the checkpoint's name or ours."""
    names = (name, model.names.to_checkpoint(f"{name}.weight")[0].removesuffix(".weight"))
    return any(one == skip or one.endswith(f".{skip}") for one in names for skip in skipped)


def _quantized(linear: nn.Linear, asked: Any, device: torch.device) -> nn.Module:
    """Return bitsandbytes' map with a linear map's values; it quantizes them when it comes to a device."""
    bitsandbytes = require("bitsandbytes", "collie-models[quant]", "quantization_config")
    layers, biased = bitsandbytes.nn, linear.bias is not None
    with torch.device("meta"):
        if asked.load_in_4bit:
            made = layers.Linear4bit(
                linear.in_features,
                linear.out_features,
                biased,
                compute_dtype=asked.bnb_4bit_compute_dtype,
                compress_statistics=asked.bnb_4bit_use_double_quant,
                quant_type=asked.bnb_4bit_quant_type,
                quant_storage=asked.bnb_4bit_quant_storage,
            )
        else:
            made = layers.Linear8bitLt(
                linear.in_features, linear.out_features, biased, False, threshold=asked.llm_int8_threshold
            )
    values = linear.weight.detach().cpu() if device.type == "cpu" else linear.weight.detach()
    if asked.load_in_4bit:
        made.weight = layers.Params4bit(
            values,
            requires_grad=False,
            compress_statistics=asked.bnb_4bit_use_double_quant,
            quant_type=asked.bnb_4bit_quant_type,
            quant_storage=asked.bnb_4bit_quant_storage,
            module=made,
        )
    else:
        made.weight = layers.Int8Params(values, requires_grad=False, has_fp16_weights=False)
    if biased:
        made.bias = linear.bias
    quantized: nn.Module = made.to(device)
    keep_trainable(quantized)
    return quantized


def keep_trainable(model: nn.Module) -> None:
    """Keep bitsandbytes' 4-bit maps in the form that gradients pass through, whatever ran before.

    On a CPU with AVX512-BF16 a forward in evaluation mode packs a map's weight for a kernel that has no gradient, once
    and for all: in training after it nothing below that map learns anything, without an error.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            _keep_trainable(module)


def _keep_trainable(map_: Any) -> None:
    map_.support_avx512bf16_for_cpu = False
    weight = map_.weight
    if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
        unpack = require("bitsandbytes.functional", "collie-models[quant]")._convert_weight_packed_for_cpu_inverse
        weight.data, weight.quant_state = unpack(weight.data, weight.quant_state)


def is_quantized(model: nn.Module) -> bool:
    """Whether some of a model's weights are no floating-point numbers."""
    return any(not parameter.is_floating_point() for parameter in model.parameters())
