"""Mistral (Jiang et al. 2023)."""

from collie.models.mistral.model import MistralForCausalLM

__all__ = ["MistralForCausalLM"]
