"""Host memory while a model is loaded: what the rank keeps and one slice of a tensor, whatever the file's dtype is.

What counts is anonymous memory (RssAnon): see `PeakMemory`. The checkpoint itself is mapped.
"""

import math
import sys

import pytest
import torch
from safetensors.torch import save_file

from collie.config import CollieConfig
from collie.models import CollieModelForCausalLM, find_family
from collie.models._steps import build
from collie.parallel import is_partitioned
from collie.parallel._shard import as_zero3
from collie.testing import PeakMemory, toy_llama_config, toy_moss_config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and speaks to glibc")
MiB = 2**20
WIDTH = 1024
SLACK = 4 * MiB  # Python's own objects, and DeepSpeed's, for more layers than a small model has

LLAMA = toy_llama_config(
    hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8
)
MOSS = toy_moss_config(n_embd=WIDTH, n_inner=WIDTH, n_layer=8, n_head=16, rotary_dim=64)  # its largest is q, k and v


def write(folder, model_config, dtype=torch.float32, pickled=False):
    config = CollieConfig(model_config=model_config)
    model = build(find_family(model_config), config)
    config.save_pretrained(folder)
    shapes = {model.names.to_checkpoint(name)[0]: p.shape for name, p in model.named_parameters()}
    tensors = {name: torch.ones(shape, dtype=dtype) for name, shape in shapes.items()}
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")


def write_all(root):
    for name, model_config in (("llama", LLAMA), ("moss", MOSS), ("small", toy_llama_config())):
        write(root / name, model_config)
    write(root / "pickled", LLAMA, pickled=True)


@pytest.fixture(scope="module")
def folders(ranks, tmp_path_factory):
    root = tmp_path_factory.mktemp("memory")
    ranks(1, write_all, root)  # what it frees must not be there to be used again by the ranks that are measured
    return root


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
    imported and made once is there. It depends on what else this process has loaded.
    """
    load(root / "small", dtype, stage, layout)
    with PeakMemory() as floor:
        load(root / "small", dtype, stage, layout)
    with PeakMemory() as peak:
        model = load(root / name, dtype, stage, layout)
    sizes = [held(parameter) for parameter in model.parameters()]
    return peak.above - floor.above, sum(sizes), max(sizes)


@pytest.mark.parametrize(
    ("name", "dtype", "stage", "layout"),
    [
        ("llama", "float32", 0, {}),
        ("llama", "bfloat16", 0, {}),
        ("moss", "bfloat16", 0, {}),  # rows in another order
        ("pickled", "bfloat16", 0, {}),
        ("llama", "bfloat16", 0, {"tp_size": 2}),  # columns of what is split by rows
        ("llama", "bfloat16", 0, {"pp_size": 2}),
        ("llama", "bfloat16", 3, {"dp_size": 2}),
        ("moss", "float32", 3, {"dp_size": 2}),
        ("moss", "float32", 3, {"tp_size": 2, "dp_size": 2}),
    ],
)
def test_the_peak_is_the_shard_and_one_slice(ranks, folders, name, dtype, stage, layout):
    for peak, shard, largest in ranks(math.prod(layout.values()), measure, folders, name, dtype, stage, layout):
        assert shard > 45 * MiB
        assert 0.9 * shard < peak <= shard + largest + SLACK, (peak / MiB, shard / MiB, largest / MiB)
