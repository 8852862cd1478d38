"""How InternLM2 is split over tensor-parallel ranks: as LLaMA is, but for the fused projection of attention."""

from collie.models.llama.plan import PLAN as LLAMA
from collie.parallel import Column, Plan, fused

_FUSED = {f"layers.*.attention.{part}" for part in ("q", "k", "v")}

PLAN = Plan(
    {
        **{pattern: entry for pattern, entry in LLAMA.table.items() if pattern not in _FUSED},
        "layers.*.attention.qkv": Column(layout=fused("q", "k", "v")),
    }
)
