"""Checkpoint names of LLaMA."""

from collie.models.weights import Names, Rename

NAMES = Names(
    Rename("model.embed_tokens.weight", "embed.weight"),
    Rename("model.layers.{i}.input_layernorm.weight", "layers.{i}.attention_norm.weight"),
    Rename("model.layers.{i}.self_attn.q_proj.*", "layers.{i}.attention.q.*"),
    Rename("model.layers.{i}.self_attn.k_proj.*", "layers.{i}.attention.k.*"),
    Rename("model.layers.{i}.self_attn.v_proj.*", "layers.{i}.attention.v.*"),
    Rename("model.layers.{i}.self_attn.o_proj.*", "layers.{i}.attention.out.*"),
    Rename("model.layers.{i}.post_attention_layernorm.weight", "layers.{i}.mlp_norm.weight"),
    Rename("model.layers.{i}.mlp.gate_proj.*", "layers.{i}.mlp.gate.*"),
    Rename("model.layers.{i}.mlp.up_proj.*", "layers.{i}.mlp.up.*"),
    Rename("model.layers.{i}.mlp.down_proj.*", "layers.{i}.mlp.down.*"),
    Rename("model.norm.weight", "norm.weight"),
    Rename("lm_head.weight", "head.weight"),
    ignore=("*.rotary_emb.inv_freq",),
)
