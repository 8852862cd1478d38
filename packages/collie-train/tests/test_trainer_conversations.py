"""The Trainer on conversations: it trains what the chat template makes of them, or refuses before anything is made."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from toy_training import make_config, make_model, sgd
from transformers import PreTrainedTokenizerFast

from collie.controller.trainer import Trainer
from collie.data import CollieDatasetForTraining
from collie.interfaces import DataError
from collie.testing import run_ranks

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROWS = [
    {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word}]}
    for word in ("one", "two", "three", "four", "five")
]


def _tokenizer():
    """Letters alone, so that their ids fit the toy model's vocabulary of 97."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(prepend_scheme="never"), decoders.Metaspace()
    letters = [*map(chr, range(ord("a"), ord("z") + 1)), "\n", "▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=30, special_tokens=["<|im_start|>", "<|im_end|>"], initial_alphabet=letters, show_progress=False
    )
    backend.train_from_iterator(["".join(letters)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=TEMPLATE)


def _train(**options):
    """The dataset that was trained on."""
    config = make_config(micro=5, train_epochs=2)
    dataset, model = CollieDatasetForTraining(ROWS, _tokenizer(), **options), make_model(config)
    Trainer(model, config, optimizer=sgd(model.parameters()), train_dataset=dataset).train()
    return dataset


def test_conversations_are_trained_and_endless_ones_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))

    def run():
        answers = [row["messages"][1]["content"] for row in ROWS]
        assert _train().report.targets == sum(len(answer) + 1 for answer in answers)  # letters and <|im_end|>
        endless = TEMPLATE.replace("<|im_end|>", "")
        with pytest.raises(DataError, match=r"would not learn to stop.*train_on_end=False"):
            _train(chat_template=endless)
        _train(chat_template=endless, train_on_end=False)

    run_ranks(1, run)
