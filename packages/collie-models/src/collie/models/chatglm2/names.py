"""Checkpoint names of ChatGLM2."""

from collie.models.weights import Names, Rename

NAMES = Names(
    Rename("transformer.embedding.word_embeddings.weight", "embed.weight"),
    Rename("transformer.encoder.layers.{i}.input_layernorm.weight", "layers.{i}.attention_norm.weight"),
    Rename("transformer.encoder.layers.{i}.self_attention.query_key_value.*", "layers.{i}.attention.qkv.*"),
    Rename("transformer.encoder.layers.{i}.self_attention.dense.*", "layers.{i}.attention.out.*"),
    Rename("transformer.encoder.layers.{i}.post_attention_layernorm.weight", "layers.{i}.mlp_norm.weight"),
    Rename("transformer.encoder.layers.{i}.mlp.dense_h_to_4h.*", "layers.{i}.mlp.gate_up.*"),
    Rename("transformer.encoder.layers.{i}.mlp.dense_4h_to_h.*", "layers.{i}.mlp.down.*"),
    Rename("transformer.encoder.final_layernorm.weight", "norm.weight"),
    Rename("transformer.output_layer.weight", "head.weight"),
    ignore=("transformer.rotary_pos_emb.inv_freq",),
)
