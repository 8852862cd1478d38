"""Model configurations small enough that a test builds, shards and trains them in well under a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def toy_llama_config(**overrides: Any) -> PretrainedConfig:
    """A LLaMA of two layers: 4 query heads over 2 key/value heads of 8; 97 tokens, which no number of ranks divides."""
    from transformers import LlamaConfig

    return toy_config(LlamaConfig, **overrides)


def toy_config(kind: type[PretrainedConfig], **overrides: Any) -> PretrainedConfig:
    """The toy LLaMA's sizes as the config of a family of its kind, such as transformers' Qwen2Config."""
    values: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    return kind(**(values | overrides))


def toy_moss_config(**overrides: Any) -> PretrainedConfig:
    """A MOSS-moon of two layers: 4 heads of 8, 4 dimensions of each rotated; a plain PretrainedConfig."""
    from transformers import PretrainedConfig

    values: dict[str, Any] = {
        "model_type": "moss",
        "architectures": ["MossForCausalLM"],
        "vocab_size": 97,
        "n_positions": 64,
        "n_ctx": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "rotary_dim": 4,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    return PretrainedConfig.from_dict(values | overrides)
