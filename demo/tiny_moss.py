"""Make a tiny MOSS-moon checkpoint in Hugging Face layout, with a tokenizer of its own trained on a few sentences.

    python demo/tiny_moss.py FOLDER [--seed 0]

The folder has what fnlp/moss-moon-003-sft has: config.json (model_type "moss"), weights in model.safetensors under the
checkpoint's own names, and the tokenizer's files. The weights are random: enough to overfit a sentence on a CPU.
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LAYERS, EMBEDDING, HEADS, ROTARY, POSITIONS = 2, 64, 8, 8, 128
END, PAD = "<|endoftext|>", "<|pad|>"
TEXT = """\
Collie is a python package for finetuning large language models.
A language model reads one token after another and says which is likely to come next.
The package splits a large model over many ranks, and each rank trains its part of it.
Finetuning changes every weight a little: the loss falls, and so does the perplexity.
A collie herds the sheep on the hill; the package herds the ranks of a python job.
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few hundred tokens, trained on TEXT: any text is encoded, known words are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def make_config(vocabulary: int, eos: int, pad: int) -> dict:
    """The config.json of a MOSS-moon of LAYERS layers."""
    return {
        "activation_function": "gelu_new",
        "architectures": ["MossForCausalLM"],
        "attn_pdrop": 0.0,
        "bos_token_id": eos,
        "embd_pdrop": 0.0,
        "eos_token_id": eos,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-5,
        "model_type": "moss",
        "n_ctx": POSITIONS,
        "n_embd": EMBEDDING,
        "n_head": HEADS,
        "n_inner": None,
        "n_layer": LAYERS,
        "n_positions": POSITIONS,
        "pad_token_id": pad,
        "resid_pdrop": 0.0,
        "rotary_dim": ROTARY,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": vocabulary,
    }


def make_weights(vocabulary: int, seed: int) -> dict[str, torch.Tensor]:
    """Every tensor of the checkpoint in float32: matrices from N(0, 0.02), norms 1, biases 0, as MOSS starts."""
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (vocabulary, EMBEDDING)}
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}"
        shapes |= {
            f"{block}.ln_1.weight": (EMBEDDING,),
            f"{block}.ln_1.bias": (EMBEDDING,),
            f"{block}.attn.qkv_proj.weight": (3 * EMBEDDING, EMBEDDING),
            f"{block}.attn.out_proj.weight": (EMBEDDING, EMBEDDING),
            f"{block}.mlp.fc_in.weight": (4 * EMBEDDING, EMBEDDING),
            f"{block}.mlp.fc_in.bias": (4 * EMBEDDING,),
            f"{block}.mlp.fc_out.weight": (EMBEDDING, 4 * EMBEDDING),
            f"{block}.mlp.fc_out.bias": (EMBEDDING,),
        }
    shapes |= {"transformer.ln_f.weight": (EMBEDDING,), "transformer.ln_f.bias": (EMBEDDING,)}
    shapes |= {"lm_head.weight": (vocabulary, EMBEDDING), "lm_head.bias": (vocabulary,)}
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        if len(shape) == 2:
            weights[name] = 0.02 * torch.randn(shape, generator=generator)
        else:
            weights[name] = torch.full(shape, 1.0 if name.endswith("weight") else 0.0)
    return weights


def make_checkpoint(folder: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Write config, weights and tokenizer into `folder`, made where missing."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    config = make_config(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(make_weights(len(tokenizer), seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    made = make_checkpoint(arguments.folder, arguments.seed)
    print(f"a tiny MOSS-moon: {', '.join(sorted(path.name for path in made.iterdir()))} in {made}")
