"""The config of MOSS (7B), which transformers does not have."""

from transformers import LlamaConfig


class MossConfig(LlamaConfig):
    """LLaMA's fields. Defaults that differ from LLaMA's are those of MOSS."""

    model_type = "moss"

    vocab_size: int = 92494
    rms_norm_eps: float = 1e-5
