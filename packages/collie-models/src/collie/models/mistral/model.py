"""Mistral: LLaMA whose queries see a window of the last keys."""

from collie.models._registry import register
from collie.models.llama import LlamaForCausalLM


@register
class MistralForCausalLM(LlamaForCausalLM):
    """Mistral; under LLaMA's checkpoint names, with its config's sliding_window in every layer."""

    model_types = ("mistral",)
    architecture = "MistralForCausalLM"
