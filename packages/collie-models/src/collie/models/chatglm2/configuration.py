"""The config of ChatGLM2, which transformers does not have."""

from typing import Any, ClassVar

from transformers import PretrainedConfig


class ChatGLM2Config(PretrainedConfig):
    """Defaults are those of chatglm2-6b.

    padded_vocab_size: tokens, with those that pad the matrix.
    seq_length: the longest context it was trained on.
    ffn_hidden_size: the MLP's inner size.
    kv_channels: the size of a head; the first half of it turns.
    multi_query_group_num: key/value heads.
    add_qkv_bias: whether queries, keys and values have biases.
    add_bias_linear: whether the other projections have.
    """

    model_type = "chatglm"
    attribute_map: ClassVar[dict[str, str]] = {
        "vocab_size": "padded_vocab_size",
        "max_position_embeddings": "seq_length",
        "intermediate_size": "ffn_hidden_size",
        "num_hidden_layers": "num_layers",
        "num_key_value_heads": "multi_query_group_num",
        "head_dim": "kv_channels",
        "rms_norm_eps": "layernorm_epsilon",
    }

    padded_vocab_size: int = 65024
    seq_length: int = 32768
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    num_layers: int = 28
    num_attention_heads: int = 32
    multi_query_attention: bool = True
    multi_query_group_num: int = 2
    kv_channels: int = 128
    hidden_act: str = "silu"
    add_qkv_bias: bool = True
    add_bias_linear: bool = False
    layernorm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a config.json. Where it has a vocab_size beside padded_vocab_size, the weights have the latter."""
        both = "padded_vocab_size" in config_dict
        values = {key: value for key, value in config_dict.items() if not (both and key == "vocab_size")}
        return super().from_dict(values, **kwargs)
