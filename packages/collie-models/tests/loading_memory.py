"""How much host memory each rank takes while it loads a model, in ranks forked from a process that did nothing before.

    python loading_memory.py CASES.json FOLDER

A process that has run other tests has a heap full of holes, and its ranks would inherit it: small objects that come to
lie in them touch pages that are no part of what is measured. CASES.json is a list of (model, dtype, ZeRO stage,
layout); the last line printed is the JSON list of what each rank of each case took, as `measure` returns it.
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from collie.config import CollieConfig
from collie.models import CollieModelForCausalLM, find_family
from collie.models._steps import build
from collie.parallel import is_partitioned
from collie.parallel._shard import as_zero3
from collie.testing import PeakMemory, run_ranks, toy_llama_config, toy_moss_config

WIDTH = 2048
LLAMA = toy_llama_config(
    hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=8
)
MOSS = toy_moss_config(n_embd=WIDTH, n_inner=WIDTH, n_layer=4, n_head=16, rotary_dim=64)  # its largest is q, k and v


def write(folder, model_config, pickled=False):
    config = CollieConfig(model_config=model_config)
    model = build(find_family(model_config), config)
    config.save_pretrained(folder)
    shapes = {model.names.to_checkpoint(name)[0]: p.shape for name, p in model.named_parameters()}
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")


def write_all(root):
    for name, model_config in (("llama", LLAMA), ("moss", MOSS), ("small", toy_llama_config())):
        write(root / name, model_config)
    write(root / "pickled", LLAMA, pickled=True)


def held(parameter):
    data = as_zero3(parameter).ds_tensor if is_partitioned(parameter) else parameter
    return data.numel() * data.element_size()


def load(folder, dtype, stage, layout):
    config = CollieConfig.from_pretrained(str(folder))
    config.ds_config = {"zero_optimization": {"stage": stage}}
    for name, size in layout.items():
        setattr(config, name, size)
    return CollieModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype)


def measure(root, name, dtype, stage, layout):
    """Bytes: the peak, this rank's shard, and the largest part of a parameter in it.

    What Python and DeepSpeed need besides is left out: as much as a model of hardly any size takes, where all that is
    imported and made once is there.
    """
    load(root / "small", dtype, stage, layout)
    with PeakMemory() as floor:
        load(root / "small", dtype, stage, layout)
    with PeakMemory() as peak:
        model = load(root / name, dtype, stage, layout)
    sizes = [held(parameter) for parameter in model.parameters()]
    return peak.above - floor.above, sum(sizes), max(sizes)


def main():
    cases, root = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    run_ranks(1, write_all, root)  # what it frees must not be there to be used again by the ranks that are measured
    taken = [
        run_ranks(math.prod(layout.values()), measure, root, name, dtype, stage, layout)
        for name, dtype, stage, layout in cases
    ]
    print(json.dumps(taken))


if __name__ == "__main__":
    main()
