"""How LLaMA is split over tensor-parallel ranks."""

from collie.parallel import Column, Entry, Plan, Row, VocabColumn, VocabRow, fused

PLAN = Plan(
    {
        "embed": VocabRow(),
        "layers.*.attention": Entry(),
        "layers.*.attention.q": Column(layout=fused("q")),
        "layers.*.attention.k": Column(layout=fused("k")),
        "layers.*.attention.v": Column(layout=fused("v")),
        "layers.*.attention.out": Row(),
        "layers.*.mlp": Entry(),
        "layers.*.mlp.gate": Column(),
        "layers.*.mlp.up": Column(),
        "layers.*.mlp.down": Row(),
        "head": VocabColumn(),
    }
)
