"""MOSS, the model of 7B parameters: LLaMA by another name. MOSS-moon 003 is a family of its own."""

from collie.models.moss.configuration import MossConfig
from collie.models.moss.model import MossForCausalLM
from collie.models.moss.plan import PLAN

__all__ = ["PLAN", "MossConfig", "MossForCausalLM"]
