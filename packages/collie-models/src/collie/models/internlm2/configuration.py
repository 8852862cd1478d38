"""The config of InternLM2, which transformers does not have."""

from transformers import LlamaConfig


class InternLM2Config(LlamaConfig):
    """LLaMA's fields and one more. Defaults are those of InternLM2's own code.

    bias: whether the two projections of attention have biases.
    """

    model_type = "internlm2"

    vocab_size: int = 103168
    pad_token_id: int | None = 0
    bias: bool = True
