"""The config of ChatGLM, which transformers does not have."""

from typing import ClassVar

from transformers import PretrainedConfig


class ChatGLMConfig(PretrainedConfig):
    """Defaults are those of chatglm-6b.

    max_sequence_length: the longest context it was trained on.
    inner_hidden_size: the MLP's inner size.
    bos_token_id: ends a row's context; what comes after it is the answer.
    gmask_token_id: stands at a context's end, for an answer of any length.
    mask_token_id: stands anywhere in a context, for an answer that belongs there.
    """

    model_type = "chatglm"
    attribute_map: ClassVar[dict[str, str]] = {
        "max_position_embeddings": "max_sequence_length",
        "intermediate_size": "inner_hidden_size",
        "num_hidden_layers": "num_layers",
    }

    vocab_size: int = 130528
    max_sequence_length: int = 2048
    hidden_size: int = 4096
    inner_hidden_size: int = 16384
    num_layers: int = 28
    num_attention_heads: int = 32
    layernorm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    position_encoding_2d: bool = True
    use_cache: bool = True
    bos_token_id: int | None = 130004
    eos_token_id: int | list[int] | None = 130005
    mask_token_id: int = 130000
    gmask_token_id: int = 130001
    pad_token_id: int | None = 3
    tie_word_embeddings: bool = True
