"""How Mistral is split over tensor-parallel ranks: as LLaMA is; a window is alike for all heads."""

from collie.models.llama.plan import PLAN

__all__ = ["PLAN"]
