"""Qwen2 and Qwen2.5 (Yang et al. 2024)."""

from collie.models.qwen2.model import Qwen2ForCausalLM
from collie.models.qwen2.plan import PLAN

__all__ = ["PLAN", "Qwen2ForCausalLM"]
