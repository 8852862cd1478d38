"""Checkpoint names of ChatGLM, and the row order of its fused attention weight."""

from typing import Any

from collie.models.weights import Names, Rename, Reorder, Rows


def qkv_rows(config: Any, total: int) -> Rows:
    """Return [all q; all k; all v]: a checkpoint has [q, k, v] for each head.

    A head's queries and keys turn in two halves, each by a position channel of its own, and in each half the first
    quarter pairs with the second. We take their quarters in the order 0, 2, 1, 3: then dimension i pairs with i + H/2,
    as everywhere else, and the first half of the pairs belongs to the first channel. Scores are sums over
    dimensions, so it is all the same to them.
    """
    heads = config.num_attention_heads
    head = total // (3 * heads)
    quarter = head // 4
    rows: Rows = []
    for kind, quarters in (("q", (0, 2, 1, 3)), ("k", (0, 2, 1, 3)), ("v", (0, 1, 2, 3))):
        starts = [(3 * index + "qkv".index(kind)) * head for index in range(heads)]
        rows += [(start + part * quarter, start + (part + 1) * quarter) for start in starts for part in quarters]
    return rows


NAMES = Names(
    Rename("transformer.word_embeddings.weight", "embed.weight"),
    Rename("transformer.layers.{i}.input_layernorm.*", "layers.{i}.attention_norm.*"),
    Reorder("transformer.layers.{i}.attention.query_key_value.*", "layers.{i}.attention.qkv.*", qkv_rows),
    Rename("transformer.layers.{i}.attention.dense.*", "layers.{i}.attention.out.*"),
    Rename("transformer.layers.{i}.post_attention_layernorm.*", "layers.{i}.mlp_norm.*"),
    Rename("transformer.layers.{i}.mlp.dense_h_to_4h.*", "layers.{i}.mlp.up.*"),
    Rename("transformer.layers.{i}.mlp.dense_4h_to_h.*", "layers.{i}.mlp.down.*"),
    Rename("transformer.final_layernorm.*", "norm.*"),
    Rename("lm_head.weight", "head.weight"),
    ignore=("*.rotary_emb.inv_freq",),
)
