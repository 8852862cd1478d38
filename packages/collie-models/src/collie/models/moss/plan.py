"""How MOSS (7B) is split over tensor-parallel ranks: as LLaMA is."""

from collie.models.llama.plan import PLAN

__all__ = ["PLAN"]
