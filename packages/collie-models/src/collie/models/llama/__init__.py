"""LLaMA 1, 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024), and models that are theirs by another name."""

from collie.models.llama.model import LlamaForCausalLM, LlamaLayer
from collie.models.llama.names import NAMES
from collie.models.llama.plan import PLAN

__all__ = ["NAMES", "PLAN", "LlamaForCausalLM", "LlamaLayer"]
