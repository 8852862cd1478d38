"""How GPT-NeoX is split over tensor-parallel ranks."""

from collie.parallel import Column, Plan, Row, VocabColumn, VocabRow, fused

PLAN = Plan(
    {
        "embed": VocabRow(),
        "layers.*.attention.qkv": Column(layout=fused("q", "k", "v")),
        "layers.*.attention.out": Row(),
        "layers.*.mlp.up": Column(),
        "layers.*.mlp.down": Row(),
        "head": VocabColumn(),
    }
)
