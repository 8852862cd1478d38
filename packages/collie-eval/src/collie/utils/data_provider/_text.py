"""From what people write to tokens, and from tokens that come one by one to what people read."""

from collections.abc import Mapping, Sequence
from typing import Any

_PARTIAL = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for bytes that are no whole character


def encode_prompt(tokenizer: Any, prompt: str | Sequence[Mapping[str, str]]) -> list[int]:
    """Return a prompt's tokens: of a text as it is, or of a conversation in the tokenizer's chat template.

    Without a chat template the model was not taught to converse: it goes on from the last message alone.

    prompt: a text, or messages {"role", "content"} of which the last waits for an answer.
    """
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if not getattr(tokenizer, "chat_template", None):
        return encode_prompt(tokenizer, prompt[-1]["content"])
    written = tokenizer.apply_chat_template([dict(one) for one in prompt], tokenize=False, add_generation_prompt=True)
    return list(tokenizer(written, add_special_tokens=False)["input_ids"])  # the template has written them


class TextStream:
    """Turns tokens into text as they come, and holds back what may still change.

    A token may end within a character (UTF-8 of more than one byte) and may lose a space where it stands alone, so
    tokens are decoded together with those of the piece before. All pieces together are the text of all tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._told: list[int] = [0, 0]  # where the last piece began and ended, in tokens

    def add(self, ids: list[int]) -> str:
        """Return the text that is certain now and was not before."""
        self._ids += ids
        began, ended = self._told
        text = self._decode(self._ids[began:])
        if text.endswith(_PARTIAL):
            return ""
        known = self._decode(self._ids[began:ended])
        if len(text) <= len(known):
            return ""
        self._told = [ended, len(self._ids)]
        return text[len(known) :]

    def end(self) -> str:
        """Return the rest, as it is."""
        began, ended = self._told
        return self._decode(self._ids[began:])[len(self._decode(self._ids[began:ended])) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
