"""From spans of characters to tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from collie.interfaces import DataError

Span = tuple[int, int]


class SpanTokenizer:
    """Tokenises whole texts and tells which tokens lie in a span of characters.

    A text is tokenised as one, as every engine does with the conversation so far. Where a token would hold the end of
    a prompt and the start of the turn behind it, the two are tokenised apart: so does an engine, which has the
    prompt alone when the turn begins.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._offsets = bool(getattr(tokenizer, "is_fast", False))

    def tokens(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[tuple[list[int], list[Span]] | str]:
        """For each text its ids, and for each of its spans (start, end) of characters that of its tokens.

        A text whose tokens do not fit its spans gets the reason instead.
        """
        if not texts:
            return []
        encoded = self._call(list(texts))
        found: list[tuple[list[int], list[Span]] | str] = []
        for number, (text, wanted) in enumerate(zip(texts, spans, strict=True)):
            ids = encoded["input_ids"][number]
            try:
                if self._offsets:
                    starts = _starts(encoded["offset_mapping"][number])
                    found.append(self._by_offsets(text, list(ids), starts, wanted))
                else:
                    found.append((list(ids), self._by_prefixes(text, ids, wanted)))
            except DataError as error:
                found.append(str(error))
        return found

    def _call(self, texts: list[str]) -> Any:
        offsets = {"return_offsets_mapping": True} if self._offsets else {}
        return self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False, **offsets)

    def _by_offsets(
        self, text: str, ids: list[int], starts: list[int], spans: Sequence[Span]
    ) -> tuple[list[int], list[Span]]:
        edges = set(starts)
        inside = sorted({start for start, _ in spans if start not in edges and start < len(text)})
        if inside:
            ids, starts = self._apart(text, ids, inside)
        return ids, [(bisect_left(starts, start), bisect_left(starts, end)) for start, end in spans]

    def _apart(self, text: str, whole: list[int], cuts: list[int]) -> tuple[list[int], list[int]]:
        """The tokens of the pieces of `text` between `cuts`."""
        edges = [0, *cuts, len(text)]
        encoded = self._call([text[a:b] for a, b in pairwise(edges)])
        ids = [token for piece in encoded["input_ids"] for token in piece]
        starts = [
            edge + start
            for edge, offsets in zip(edges, encoded["offset_mapping"], strict=False)
            for start in _starts(offsets)
        ]
        if self._text(ids) != self._text(whole):  # a tokenizer that begins every text with a space of its own
            around = text[max(0, cuts[0] - 12) : cuts[0] + 12]
            raise DataError(
                f"a token holds the end of the prompt and the start of the turn in {around!r}, and this tokenizer "
                "cannot tokenise them apart: give a chat_template whose generation prompt ends without a space."
            )
        return ids, starts

    def _text(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _by_prefixes(self, text: str, ids: Sequence[int], spans: Sequence[Span]) -> list[Span]:
        """Without offsets: where the text before an edge is tokenised as the whole text begins, its length tells."""

        def place(edge: int) -> int:
            prefix = self._call([text[:edge]])["input_ids"][0] if edge else []
            if list(ids[: len(prefix)]) != list(prefix):
                around = text[max(0, edge - 12) : edge + 12]
                raise DataError(
                    f"this tokenizer gives no offsets, and a token goes over the turn's edge in {around!r}: which "
                    "tokens are the turn's cannot be told. Use a fast tokenizer."
                )
            return len(prefix)

        return [(place(start), place(end)) for start, end in spans]


def _starts(offsets: Iterable[Span]) -> list[int]:
    """Where each token begins, so that tokens leave nothing between them.

    Some tokenizers leave white space out of a token's offsets, or put the end for the beginning. The tokens of one
    character have one start.
    """
    starts, reached = [], 0
    for start, end in offsets:
        starts.append(min(start, reached))
        reached = max(reached, end)
    return starts
