"""InternLM (InternLM Team 2023)."""

from collie.models.internlm.configuration import InternLMConfig
from collie.models.internlm.model import InternLMForCausalLM

__all__ = ["InternLMConfig", "InternLMForCausalLM"]
