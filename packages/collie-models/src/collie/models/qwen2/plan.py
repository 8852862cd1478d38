"""How Qwen2 is split over tensor-parallel ranks: as LLaMA is; the biases go with their weights' rows."""

from collie.models.llama.plan import PLAN

__all__ = ["PLAN"]
