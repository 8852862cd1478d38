"""Checkpoint names of MOSS-moon and CodeGen, and the row order of their fused attention weight."""

from typing import Any

from collie.models.weights import Names, Rename, Reorder, Rows

BLOCKS = 4  # CodeGen was trained on slices of TPUs: its qkv has a block for each of 4 cores, whatever n_head is


def qkv_rows(config: Any, total: int) -> Rows:
    """Return [all q; all k; all v] in terms of a checkpoint's blocks, each of which is [q | v | k], in that order."""
    part = total // (3 * BLOCKS)
    place = {"q": 0, "v": 1, "k": 2}
    starts = [(3 * block + place[kind]) * part for kind in "qkv" for block in range(BLOCKS)]
    return [(start, start + part) for start in starts]


NAMES = Names(
    Rename("transformer.wte.weight", "embed.weight"),
    Rename("transformer.h.{i}.ln_1.*", "layers.{i}.norm.*"),
    Reorder("transformer.h.{i}.attn.qkv_proj.weight", "layers.{i}.attention.qkv.weight", qkv_rows),
    Rename("transformer.h.{i}.attn.out_proj.weight", "layers.{i}.attention.out.weight"),
    Rename("transformer.h.{i}.mlp.fc_in.*", "layers.{i}.mlp.up.*"),
    Rename("transformer.h.{i}.mlp.fc_out.*", "layers.{i}.mlp.down.*"),
    Rename("transformer.ln_f.*", "norm.*"),
    Rename("lm_head.*", "head.*"),
    ignore=("*.attn.causal_mask",),
)
