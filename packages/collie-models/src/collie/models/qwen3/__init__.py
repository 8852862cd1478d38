"""Qwen3, the dense models (Yang et al. 2025)."""

from collie.models.qwen3.model import Qwen3ForCausalLM
from collie.models.qwen3.names import NAMES
from collie.models.qwen3.plan import PLAN

__all__ = ["NAMES", "PLAN", "Qwen3ForCausalLM"]
