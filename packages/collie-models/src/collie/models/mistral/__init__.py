"""Mistral (Jiang et al. 2023)."""

from collie.models.mistral.model import MistralForCausalLM
from collie.models.mistral.plan import PLAN

__all__ = ["PLAN", "MistralForCausalLM"]
