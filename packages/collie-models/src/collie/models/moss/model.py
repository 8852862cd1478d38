"""MOSS (7B): LLaMA, under LLaMA's checkpoint names."""

from collie.models._registry import register
from collie.models.llama import LlamaForCausalLM
from collie.models.moss.configuration import MossConfig
from collie.models.moss.plan import PLAN


@register
class MossForCausalLM(LlamaForCausalLM):
    """MOSS (7B)."""

    model_types = ("moss",)
    marks = ("rms_norm_eps",)  # "moss" is also the type of MOSS-moon, whose norms are LayerNorms
    plan = PLAN
    architecture = "MossForCausalLM"
    config_class = MossConfig
