"""MOSS (7B): LLaMA, under LLaMA's checkpoint names."""

from transformers import PretrainedConfig

from collie.models._registry import register
from collie.models.llama import LlamaForCausalLM
from collie.models.moss.configuration import MossConfig


@register
class MossForCausalLM(LlamaForCausalLM):
    """MOSS (7B)."""

    model_types = ("moss",)
    architecture = "MossForCausalLM"
    config_class = MossConfig

    @classmethod
    def serves(cls, model_config: PretrainedConfig) -> bool:
        """The name "moss" is also that of MOSS-moon, whose norms are LayerNorms: it has no rms_norm_eps."""
        return model_config.model_type in cls.model_types and hasattr(model_config, "rms_norm_eps")
