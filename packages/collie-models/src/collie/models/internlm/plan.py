"""How InternLM is split over tensor-parallel ranks: as LLaMA is; attention's output bias is added once."""

from collie.models.llama.plan import PLAN

__all__ = ["PLAN"]
