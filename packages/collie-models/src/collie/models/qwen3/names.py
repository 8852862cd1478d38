"""Checkpoint names of Qwen3: LLaMA's, and the norms of queries and keys."""

from collie.models.llama import NAMES as LLAMA
from collie.models.weights import Names, Rename

NAMES = Names(
    *LLAMA.entries,
    Rename("model.layers.{i}.self_attn.q_norm.weight", "layers.{i}.attention.q_norm.weight"),
    Rename("model.layers.{i}.self_attn.k_norm.weight", "layers.{i}.attention.k_norm.weight"),
    ignore=LLAMA.ignore,
)
