"""What cannot work is refused on every rank by a sentence: field, value, mend; and nobody hangs."""

import json
import re
import shutil
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from collie import CollieConfig, CollieDatasetForTraining, CollieModelForCausalLM, Lomo, Trainer
from collie.interfaces import CollieError
from collie.testing import RankError, run_ranks

ROWS = [{"input": "Collie is a python package for ", "output": "finetuning large language models."}] * 8
MEND = r"(?i)\b(use|set|give|must|did you mean)\b"


def unchanged(config):
    """Leave the config as it is."""


def train(checkpoint, configure=unchanged, rows=ROWS, wrap=None):
    """What a script does, for one rank: config, data, model, Trainer, training."""
    config = CollieConfig.from_pretrained(str(checkpoint))
    config.train_epochs, config.ds_config = 1, {"zero_optimization": {"stage": 3}}
    configure(config)
    data = wrap(rows) if wrap else CollieDatasetForTraining(rows, AutoTokenizer.from_pretrained(str(checkpoint)))
    model = CollieModelForCausalLM.from_pretrained(str(checkpoint), config=config)
    trainer = Trainer(model=model, config=config, optimizer=Lomo(model, lr=0.1), train_dataset=data)
    trainer.train()
    return trainer.global_batch_idx


def refused(*patterns, args):
    """Both ranks fail, soon, with one of our errors, whose sentence has all patterns."""
    began = time.monotonic()
    results = run_ranks(2, train, *args, timeout=60, return_exceptions=True)
    assert time.monotonic() - began < 50
    for result in results:
        assert isinstance(result, RankError), f"a rank went on: {result!r}"
        assert isinstance(result.exception, CollieError), f"{result}"
        message = str(result.exception)
        for pattern in patterns:
            assert re.search(pattern, message), f"{pattern!r} is not in: {message}"
        assert message == message.strip() and message.endswith((".", ")", "?")) and len(message) < 500, message


def setting(name, value):
    """A function that sets one field of a config."""
    return lambda config: setattr(config, name, value)


@pytest.fixture
def checkpoint(tiny_moss, tmp_path):
    """A copy of the tiny checkpoint, to be damaged."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_moss, folder)
    return folder


def test_good_input_trains(tiny_moss):
    """The frame of the other tests is sound: undamaged input trains on two ranks."""
    assert run_ranks(2, train, tiny_moss, timeout=60) == [3, 3]


@pytest.mark.parametrize(
    ("name", "value", "patterns"),
    [
        ("dp_size", 3, ("dp_size=3", "2", MEND)),
        ("tp_size", 3, ("tp_size=3", MEND)),
        ("pp_size", 5, ("pp_size=5", MEND)),
        ("train_micro_batch_size", 0, ("train_micro_batch_size=0", "1", MEND)),
        ("dropout", 1.5, ("dropout=1.5", MEND)),
    ],
)
def test_sizes_that_do_not_fit(tiny_moss, name, value, patterns):
    refused(*patterns, args=(tiny_moss, setting(name, value)))


def test_zero3_with_a_pipeline(tiny_moss):
    refused("stage 3", "pp_size=2", MEND, args=(tiny_moss, setting("pp_size", 2)))


def test_a_misspelled_field(tiny_moss):
    refused("train_micro_batchsize", "train_micro_batch_size", args=(tiny_moss, setting("train_micro_batchsize", 2)))


@pytest.mark.parametrize("content", [None, "{not json", "[1, 2]"])
def test_an_unreadable_ds_config(tiny_moss, tmp_path, content):
    path = tmp_path / "ds_config.json"
    if content is not None:
        path.write_text(content)
    refused("ds_config", re.escape(str(path)), args=(tiny_moss, setting("ds_config", str(path))))


def test_an_unknown_model_type(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "mossy"}))
    refused("model_type", "mossy", "llama", args=(checkpoint,))


def test_a_missing_tensor(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["transformer.h.1.mlp.fc_in.weight"]
    save_file(tensors, checkpoint / "model.safetensors")
    refused(r"transformer\.h\.1\.mlp\.fc_in\.weight", re.escape(str(checkpoint)), args=(checkpoint,))


def test_a_misshapen_tensor(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["transformer.h.1.mlp.fc_in.weight"] = tensors["transformer.h.1.mlp.fc_in.weight"][:-1].contiguous()
    save_file(tensors, checkpoint / "model.safetensors")
    refused(r"transformer\.h\.1\.mlp\.fc_in\.weight", "255", "256", "64", args=(checkpoint,))


def test_a_row_without_its_keys(tiny_moss):
    refused("row 3", "'prompt'", "'input'", "'output'", args=(tiny_moss, unchanged, [*ROWS[:3], {"prompt": "Collie"}]))


def test_a_row_without_a_target(tiny_moss):
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, -100, -100] if index == 3 else [5, 6, 7]} for index in range(8)]
    refused("row 3", "no target token", "-100", args=(tiny_moss, unchanged, rows))
    refused("row 3", "no target token", "-100", args=(tiny_moss, unchanged, rows, list))


SCRIPT = """
import sys
from collie import CollieConfig, CollieModelForCausalLM, Lomo, Trainer

class Rows:  # nobody can look at all rows of this one beforehand
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return {"ids": [5, 6, 7]} if index == 5 else {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}

config = CollieConfig.from_pretrained(sys.argv[1])
config.train_epochs = 1
model = CollieModelForCausalLM.from_pretrained(sys.argv[1], config=config)
Trainer(model=model, config=config, optimizer=Lomo(model, lr=0.1), train_dataset=Rows()).train()
"""


def test_one_rank_alone_meets_a_bad_row(tiny_moss, tmp_path):
    """Under torchrun: the row is met in the middle of training by one rank; the other is not left waiting for it."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = subprocess.run(
        [*torchrun, str(script), str(tiny_moss)], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode != 0
    assert re.search(r"DataError: .*\['ids'\].*input_ids", run.stderr), run.stderr[-3000:]
