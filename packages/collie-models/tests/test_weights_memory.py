"""Host memory while a model is loaded: what the rank keeps and one slice of a tensor, whatever the file's dtype is.

What counts is anonymous memory (RssAnon): see `PeakMemory`. The checkpoint itself is mapped.
"""

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
SLACK = 4 * MiB  # Python's own objects, and DeepSpeed's

LLAMA = toy_llama_config(
    hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8
)
MOSS = toy_moss_config(n_embd=WIDTH, n_inner=WIDTH, n_layer=8, n_head=16, rotary_dim=64)  # its largest is q, k and v


def write(folder, model_config, dtype=torch.float32):
    config = CollieConfig(model_config=model_config)
    model = build(find_family(model_config), config)
    config.save_pretrained(folder)
    shapes = {model.names.to_checkpoint(name)[0]: p.shape for name, p in model.named_parameters()}
    save_file({name: torch.ones(shape, dtype=dtype) for name, shape in shapes.items()}, folder / "model.safetensors")


def write_all(root):
    for name, model_config in (("llama", LLAMA), ("moss", MOSS), ("small", toy_llama_config())):
        write(root / name, model_config)


@pytest.fixture(scope="module")
def folders(ranks, tmp_path_factory):
    root = tmp_path_factory.mktemp("memory")
    ranks(1, write_all, root)  # what it frees must not be there to be used again by the ranks that are measured
    return root


def held(parameter):
    data = as_zero3(parameter).ds_tensor if is_partitioned(parameter) else parameter
    return data.numel() * data.element_size()


def load(folder, dtype, tp, stage):
    config = CollieConfig.from_pretrained(str(folder))
    config.tp_size, config.ds_config = tp, {"zero_optimization": {"stage": stage}}
    return CollieModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype)


def measure(root, name, *layout):
    """Bytes: the peak, this rank's shard, and the largest part of a parameter in it."""
    load(root / "small", *layout)  # what is imported and made once is no part of it
    with PeakMemory() as peak:
        model = load(root / name, *layout)
    sizes = [held(parameter) for parameter in model.parameters()]
    return peak.above, sum(sizes), max(sizes)


@pytest.mark.parametrize(
    ("name", "count", "dtype", "tp", "stage"),
    [
        ("llama", 1, "float32", 1, 0),
        ("llama", 1, "bfloat16", 1, 0),
        ("moss", 1, "bfloat16", 1, 0),  # rows in another order
        ("llama", 2, "bfloat16", 2, 0),  # columns of what is split by rows
        ("llama", 2, "bfloat16", 1, 3),
        ("moss", 2, "float32", 1, 3),
    ],
)
def test_the_peak_is_the_shard_and_one_slice(ranks, folders, name, count, dtype, tp, stage):
    for peak, shard, largest in ranks(count, measure, folders, name, dtype, tp, stage):
        assert shard > 60 * MiB
        assert 0.9 * shard < peak <= shard + largest + SLACK, (peak / MiB, shard / MiB, largest / MiB)
