"""How much a cache saves in generation: the same tokens, generated with and without, on one model of random weights.

    python benchmarks/generation.py [--tokens 256] [--device cpu]

Prints one JSON line: seconds with and without, their ratio, and whether both gave the same tokens. Ends with status 1
if they did not, or if the ratio is under --at-least.
"""

import argparse
import json
import sys
import time

import torch
from transformers import LlamaConfig

from collie.config import CollieConfig
from collie.models import CollieModelForCausalLM


def make(arguments: argparse.Namespace) -> CollieModelForCausalLM:
    """A LLaMA whose weights are wide enough that one token does not follow on any other."""
    sizes = LlamaConfig(
        vocab_size=arguments.vocab,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.hidden * 8 // 3,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 64,
        tie_word_embeddings=False,
    )
    config = CollieConfig(
        model_config=sizes, initization_method="normal", initization_method_params={"std": 0.05}
    )  # fmt: skip
    return CollieModelForCausalLM.from_config(config).to(arguments.device)


def generate(
    model: CollieModelForCausalLM, ids: torch.Tensor, tokens: int, use_cache: bool
) -> tuple[float, torch.Tensor]:
    """Return seconds and tokens, greedy and never stopping early."""
    started = time.perf_counter()
    out = model.generate(
        ids, max_new_tokens=tokens, do_sample=False, use_cache=use_cache, eos_token_id=None, pad_token_id=0
    )
    generated = out[:, ids.shape[1] :].cpu()  # waits for the device
    return time.perf_counter() - started, generated


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=256, help="new tokens")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--at-least", type=float, default=5.0, help="the ratio that is asked for")
    arguments = parser.parse_args()
    model = make(arguments)
    torch.manual_seed(0)
    ids = torch.randint(3, arguments.vocab, (arguments.batch, arguments.prompt), device=arguments.device)
    generate(model, ids, 4, True)  # what only the first call does
    (with_cache, first), (without, second) = (generate(model, ids, arguments.tokens, use) for use in (True, False))
    ratio, same = without / with_cache, torch.equal(first, second)
    line = vars(arguments) | {"torch": torch.__version__, "threads": torch.get_num_threads()}
    line |= {"seconds_with_cache": round(with_cache, 3), "seconds_without": round(without, 3)}
    print(json.dumps(line | {"ratio": round(ratio, 2), "same_tokens": same}))
    return 0 if same and ratio >= arguments.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
