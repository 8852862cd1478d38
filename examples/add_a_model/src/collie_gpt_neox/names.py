"""Checkpoint names of GPT-NeoX, and the row order of its fused attention weight."""

from typing import Any

from collie.models.weights import Names, Rename, Reorder, Rows


def qkv_rows(config: Any, total: int) -> Rows:
    """Return [all q; all k; all v]: a checkpoint has [q, k, v] for each head."""
    heads = config.num_attention_heads
    rows = total // (3 * heads)  # of one head's q, k or v
    starts = [(3 * head + kind) * rows for kind in range(3) for head in range(heads)]
    return [(start, start + rows) for start in starts]


NAMES = Names(
    Rename("gpt_neox.embed_in.weight", "embed.weight"),
    Rename("gpt_neox.layers.{i}.input_layernorm.*", "layers.{i}.attention_norm.*"),
    Reorder("gpt_neox.layers.{i}.attention.query_key_value.*", "layers.{i}.attention.qkv.*", qkv_rows),
    Rename("gpt_neox.layers.{i}.attention.dense.*", "layers.{i}.attention.out.*"),
    Rename("gpt_neox.layers.{i}.post_attention_layernorm.*", "layers.{i}.mlp_norm.*"),
    Rename("gpt_neox.layers.{i}.mlp.dense_h_to_4h.*", "layers.{i}.mlp.up.*"),
    Rename("gpt_neox.layers.{i}.mlp.dense_4h_to_h.*", "layers.{i}.mlp.down.*"),
    Rename("gpt_neox.final_layer_norm.*", "norm.*"),
    Rename("embed_out.weight", "head.weight"),
    ignore=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),  # buffers in older files
)
