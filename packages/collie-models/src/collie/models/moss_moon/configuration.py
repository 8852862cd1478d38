"""The config of MOSS-moon, which transformers does not have."""

from typing import ClassVar

from transformers import PretrainedConfig


class Moss003MoonConfig(PretrainedConfig):
    """GPT-J's parallel blocks under CodeGen's names. Defaults are those of moss-moon-003 (16B).

    vocab_size: tokens, with those that pad the matrix.
    n_positions, n_ctx: the longest context it was trained on.
    n_embd, n_layer, n_head: hidden size, layers, heads.
    rotary_dim: dimensions of a head that turn.
    n_inner: the MLP's inner size; None for 4·n_embd.
    """

    model_type = "moss"
    attribute_map: ClassVar[dict[str, str]] = {
        "max_position_embeddings": "n_positions",
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = 107008
    n_positions: int = 2048
    n_ctx: int = 2048
    n_embd: int = 4096
    n_layer: int = 28
    n_head: int = 16
    rotary_dim: int = 64
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = 106028
    eos_token_id: int | list[int] | None = 106068
    tie_word_embeddings: bool = False
