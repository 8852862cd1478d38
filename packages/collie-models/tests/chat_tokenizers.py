"""Small tokenizers with the special tokens of well-known chat models, for the tests of chat templates."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "You are helpful. What is 2 + 2? It is 4. And 3 + 3? The weather in Paris is sunny, 21 degrees.",
    "Two and two make four, so I say 4. user assistant system tool model think",
]


def byte_level(special, *, eos, bos=None, added=(), trim_offsets=False, template=None):
    """A byte-level BPE in the manner of GPT-2, Qwen and Llama 3: `special` and `added` are tokens of their own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.train_from_iterator(
        CORPUS * 20,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=list(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return _wrapped(tokenizer, eos, bos, special, template)


def metaspace(special, *, eos, bos=None, prepend="first", template=None):
    """A BPE with ▁ for spaces, one of them before a text, in the manner of Llama 2 and Zephyr."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    letters = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", *special], initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    return _wrapped(tokenizer, eos, bos, special, template)


def _wrapped(tokenizer, eos, bos, special, template):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        bos_token=bos,
        additional_special_tokens=[token for token in special if token not in (eos, bos)],
        chat_template=template,
    )
