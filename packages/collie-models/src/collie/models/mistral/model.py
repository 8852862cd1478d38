"""Mistral: LLaMA whose queries see a window of the last keys."""

from collie.models._registry import register
from collie.models.llama import LlamaForCausalLM
from collie.models.mistral.plan import PLAN


@register
class MistralForCausalLM(LlamaForCausalLM):
    """Mistral; under LLaMA's checkpoint names, with its config's sliding_window in every layer."""

    model_types = ("mistral",)
    plan = PLAN
    architecture = "MistralForCausalLM"
