"""How Qwen3 is split over tensor-parallel ranks: as LLaMA is, and each rank norms its own heads alone."""

from collie.models.llama.plan import PLAN as LLAMA
from collie.parallel import Plan, Summed

PLAN = Plan(
    {
        **LLAMA.table,
        "layers.*.attention.q_norm": Summed(),
        "layers.*.attention.k_norm": Summed(),
    }
)
