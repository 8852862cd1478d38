"""InternLM (InternLM Team 2023)."""

from collie.models.internlm.configuration import InternLMConfig
from collie.models.internlm.model import InternLMForCausalLM
from collie.models.internlm.plan import PLAN

__all__ = ["PLAN", "InternLMConfig", "InternLMForCausalLM"]
