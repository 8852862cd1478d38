"""MOSS, the model of 7B parameters: LLaMA by another name. MOSS-moon 003 is a family of its own."""

from collie.models.moss.configuration import MossConfig
from collie.models.moss.model import MossForCausalLM

__all__ = ["MossConfig", "MossForCausalLM"]
