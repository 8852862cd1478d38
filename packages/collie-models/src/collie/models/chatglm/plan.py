"""How ChatGLM is split over tensor-parallel ranks."""

from collie.parallel import Column, Plan, Row, VocabColumn, VocabRow, fused

PLAN = Plan(
    {
        "embed": VocabRow(),
        "layers.*.attention.qkv": Column(layout=fused("q", "k", "v")),  # in our row order, not the checkpoint's
        "layers.*.attention.out": Row(),
        "layers.*.mlp.up": Column(),
        "layers.*.mlp.down": Row(),
        "head": VocabColumn(),
    }
)
