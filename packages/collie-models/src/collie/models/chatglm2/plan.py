"""How ChatGLM2 is split over tensor-parallel ranks; it has few key/value heads, which several of them may hold."""

from collie.parallel import Column, Plan, Row, VocabColumn, VocabRow, fused

PLAN = Plan(
    {
        "embed": VocabRow(),
        "layers.*.attention.qkv": Column(layout=fused("q", "k", "v")),
        "layers.*.attention.out": Row(),
        "layers.*.mlp.gate_up": Column(layout=fused("gate", "up")),
        "layers.*.mlp.down": Row(),
        "head": VocabColumn(),
    }
)
