"""Toys that every test here uses: a model with the interface of CoLLiE's, a tokenizer of letters, a run's events."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from collie.config import CollieConfig
from collie.interfaces import RunContext
from collie.module import GPTLMLoss
from collie.testing import toy_llama_config

VOCAB = 29
PAD, BOS, EOS = 0, 1, 2  # 3 … 28 are the letters a … z


class Bigram(nn.Module):
    """Predicts from the last token alone; counts its calls and keeps all ids that it was shown.

    `generate` walks through the alphabet, each letter followed by the next, z by the end.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.table = nn.Parameter(torch.randn(VOCAB, VOCAB, generator=generator) * 2)
        self.inner = nn.Dropout(0.5)
        self.seen: list[Tensor] = []
        self.modes: list[bool] = []
        self.made_logits = 0
        self.settings: Any = None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_logits: bool = True,
        num_items_in_batch: int | None = None,
    ) -> SimpleNamespace:
        self.seen.append(input_ids)
        self.modes.append(self.training)
        self.made_logits += return_logits
        logits = self.table[input_ids]
        loss = None
        if labels is not None:
            total, count = GPTLMLoss().sum(logits, labels)
            loss = total / (count if num_items_in_batch is None else num_items_in_batch)
        return SimpleNamespace(loss=loss, logits=logits if return_logits else None)

    def generate(self, input_ids: Tensor, attention_mask: Tensor, generation_config: Any, **_: Any) -> Tensor:
        self.seen.append(input_ids)
        self.modes.append(self.training)
        self.settings = generation_config
        new = torch.full((len(input_ids), generation_config.max_new_tokens), generation_config.pad_token_id)
        for row, ids in enumerate(input_ids.tolist()):
            token = ids[-1]
            for at in range(new.shape[1]):
                token = token + 1 if token < VOCAB - 1 else EOS
                new[row, at] = token
                if token == EOS:
                    break
        return torch.cat([input_ids, new], dim=1)


class Letters:
    """A tokenizer of single letters."""

    pad_token_id, bos_token_id, eos_token_id = PAD, BOS, EOS

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") + 3 for letter in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        names = {PAD: "<pad>", BOS: "<s>", EOS: "</s>"}
        special = "" if skip_special_tokens else None
        return "".join(
            chr(token - 3 + ord("a")) if token > EOS else names[token] if special is None else special for token in ids
        )

    def pair(self, prompt: str, answer: str) -> dict[str, list[int]]:
        """A row whose labels are the answer and the end token, as CollieDatasetForTraining makes them."""
        first, second = self.encode(prompt), [*self.encode(answer), EOS]
        return {
            "input_ids": first + second,
            "attention_mask": [1] * (len(first) + len(second)),
            "labels": [-100] * len(first) + second,
        }


@dataclass
class Events:
    """An event sink that remembers."""

    written: list[tuple[Any, int | None]] = field(default_factory=list)

    def write(self, event: Any, *, step: int | None = None) -> None:
        self.written.append((event, step))

    def of(self, kind: type) -> list[Any]:
        return [event for event, _ in self.written if isinstance(event, kind)]


@pytest.fixture(scope="session", autouse=True)
def _tokens(tmp_path_factory):
    """What tests tokenise is not kept in the user's own cache."""
    os.environ["COLLIE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _no_group_stays() -> Iterator[None]:
    """An evaluation with a config makes a world of one, which ranks forked by a later test would inherit."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def bigram() -> Bigram:
    return Bigram()


@pytest.fixture
def letters() -> Letters:
    return Letters()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def context(events: Events) -> RunContext:
    """What a Trainer at step 12 gives to rank 0 of a world of one."""
    return RunContext(events=events, rank=0, world_size=1, step=lambda: 12)


@pytest.fixture
def pairs(letters: Letters) -> list[dict[str, list[int]]]:
    """Seven rows, an odd number, with prompts of 1 to 7 letters and answers of 1 to 3."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    return [letters.pair(alphabet[3 * row : 4 * row + 1], alphabet[row : row + 1 + row % 3]) for row in range(7)]


@pytest.fixture
def config() -> CollieConfig:
    """Two rows a batch on each rank."""
    config = CollieConfig()
    config.eval_batch_size = 2
    return config


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a LLaMA of two layers and 256 positions, and a tokenizer whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("llama")
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokens = Tokenizer(BPE(vocabulary, merges=[]))
    tokens.pre_tokenizer, tokens.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    torch.manual_seed(5)
    config = toy_llama_config(vocab_size=len(vocabulary), max_position_embeddings=256, initializer_range=0.4)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
