"""Qwen3, the dense models (Yang et al. 2025)."""

from collie.models.qwen3.model import Qwen3ForCausalLM
from collie.models.qwen3.names import NAMES

__all__ = ["NAMES", "Qwen3ForCausalLM"]
