"""Checkpoint names of InternLM2, and the row order of its fused attention weight."""

from typing import Any

from collie.models.weights import Names, Rename, Reorder, Rows


def qkv_rows(config: Any, total: int) -> Rows:
    """Return [all q; all k; all v]: a checkpoint has a group [its query heads, k, v] for each key/value head."""
    groups, heads = config.num_key_value_heads, config.num_attention_heads
    head = total // (heads + 2 * groups)
    group, queries = total // groups, heads // groups * head
    starts = range(0, total, group)
    return [
        *((start, start + queries) for start in starts),
        *((start + queries, start + queries + head) for start in starts),
        *((start + queries + head, start + group) for start in starts),
    ]


NAMES = Names(
    Rename("model.tok_embeddings.weight", "embed.weight"),
    Rename("model.layers.{i}.attention_norm.weight", "layers.{i}.attention_norm.weight"),
    Reorder("model.layers.{i}.attention.wqkv.*", "layers.{i}.attention.qkv.*", qkv_rows),
    Rename("model.layers.{i}.attention.wo.*", "layers.{i}.attention.out.*"),
    Rename("model.layers.{i}.ffn_norm.weight", "layers.{i}.mlp_norm.weight"),
    Rename("model.layers.{i}.feed_forward.w1.weight", "layers.{i}.mlp.gate.weight"),
    Rename("model.layers.{i}.feed_forward.w3.weight", "layers.{i}.mlp.up.weight"),
    Rename("model.layers.{i}.feed_forward.w2.weight", "layers.{i}.mlp.down.weight"),
    Rename("model.norm.weight", "norm.weight"),
    Rename("output.weight", "head.weight"),
    ignore=("*.rotary_emb.inv_freq",),
)
