"""The config of InternLM, which transformers does not have."""

from typing import Any

from transformers import LlamaConfig


class InternLMConfig(LlamaConfig):
    """LLaMA's fields and two more. Defaults are those of internlm-7b.

    bias: whether queries, keys, values and the output projection of attention have biases.
    rotary: theta as `base`, and as `type` "origin" or "dynamic"; None where the config has rope_theta and rope_scaling.
    """

    model_type = "internlm"

    vocab_size: int = 103168
    pad_token_id: int | None = 0
    bias: bool = True
    rotary: dict[str, Any] | None = None
