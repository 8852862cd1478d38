"""From questions with candidate answers to tokens: the candidates scored apart, or listed in a prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Literal

from collie.data._formats import Example, Format
from collie.data._prompts import PromptEncoder
from collie.data._rows import Encoded, Refused, Tokens, check_text
from collie.interfaces import DataError
from collie.module import IGNORE_INDEX

Style = Literal["harness", "helm"]

CANDIDATES = "candidates"
"""The field of a row that is several lists of tokens joined: the length of each."""


class ChoiceEncoder:
    """Turns {"question", "candidates", "target"} into tokens.

    "harness": question and candidate joined, for each candidate, one behind the other in one row; its field
    `candidates` has their lengths. "helm": a prompt that lists the candidates as "A. …". No eos follows a candidate.

    Args:
        prompts: makes the prompts, of which the longest with its candidate keeps to its max_length.
        style: "harness" or "helm".
        chat: whether the question is a turn of the user, in a chat template.

    Raises DataError: another style.
    """

    def __init__(self, prompts: PromptEncoder, style: Style, *, chat: bool) -> None:
        if style not in ("harness", "helm"):
            raise DataError(
                f"style={style!r}: give 'harness' (candidates are scored) or 'helm' (a letter is predicted)."
            )
        self.prompts = prompts
        self.style = style
        self.chat = chat

    def fingerprint(self) -> str:
        """Changes with everything that the result depends on besides the rows."""
        parts = ["choices", self.style, self.chat, self.prompts.fingerprint()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def encode(self, rows: Sequence[Example], indices: Sequence[int]) -> list[Encoded | Refused]:
        """The rows' tokens, in order; one with too many candidates, an empty one, or one too long is refused."""
        if self.style == "helm":
            return self._listed(rows, indices)
        asked = self.prompts.prompts([self._question(row["question"]) for row in rows], indices)
        ids = iter(self.prompts.text.ids([candidate for row in rows for candidate in row["candidates"]]))
        results: list[Encoded | Refused] = []
        for row, index, (prompt, _) in zip(rows, indices, asked, strict=True):
            candidates = [next(ids) for _ in row["candidates"]]
            results.append(prompt if isinstance(prompt, Refused) else self._scored(prompt, candidates, row, index))
        return results

    def _scored(self, prompt: list[int], candidates: list[list[int]], row: Example, index: int) -> Encoded | Refused:
        if not all(candidates):
            return Refused(index, f"row {index} has an empty candidate: there is no token of it to score.")
        lengths = [len(prompt) + len(candidate) for candidate in candidates]
        limit = self.prompts.max_length
        if 0 <= limit < max(lengths):
            return Refused(
                index,
                f"row {index} has {max(lengths)} tokens of input and candidate, more than max_length={limit}: raise "
                "max_length, shorten the input, or leave the row out.",
            )
        given = [IGNORE_INDEX] * len(prompt)
        tokens = Tokens(
            [token for candidate in candidates for token in prompt + candidate],
            [1] * sum(lengths),
            [label for candidate in candidates for label in given + candidate],
        )
        return Encoded(tokens, {CANDIDATES: lengths, "target": row["target"]}, sum(lengths))

    def _listed(self, rows: Sequence[Example], indices: Sequence[int]) -> list[Encoded | Refused]:
        results: dict[int, Encoded | Refused] = {}
        asked: dict[int, Example] = {}
        for place, (row, index) in enumerate(zip(rows, indices, strict=True)):
            if len(row["candidates"]) > len(ascii_uppercase):
                count = len(row["candidates"])
                results[place] = Refused(index, f"row {index} has {count} candidates: style 'helm' has letters for 26.")
            else:
                options = "\n".join(map("{}. {}".format, ascii_uppercase, row["candidates"]))
                asked[place] = {**self._question(f"{row['question']}\n{options}\nAnswer:"), "target": row["target"]}
        numbers = [indices[place] for place in asked]
        results.update(zip(asked, self.prompts.encode(list(asked.values()), numbers), strict=True))
        return [results[place] for place in range(len(rows))]

    def _question(self, text: str) -> Example:
        return {"messages": [{"role": "user", "content": text}], "tools": None} if self.chat else {"input": text}


def _choice(row: Mapping[str, Any], index: int) -> Example:
    question, candidates, target = row["input"], row["output"], row["target"]
    if not isinstance(question, str):
        raise DataError(f"'input' of row {index} is a {type(question).__name__}: a string is needed.")
    if not isinstance(candidates, list | tuple) or not all(isinstance(text, str) for text in candidates):
        raise DataError(
            f"'output' of row {index} is {str(candidates)[:40]!r}: a list of strings, the candidates, is needed."
        )
    for name, texts in (("input", [question]), ("output", candidates)):
        for text in texts:
            check_text(text, f"{name!r} of row {index}")
    if len(candidates) < 2:
        raise DataError(
            f"row {index} has {len(candidates)} candidates in 'output': at least 2 are needed to choose from."
        )
    if isinstance(target, bool) or not hasattr(target, "__index__") or not 0 <= int(target) < len(candidates):
        raise DataError(
            f"'target' of row {index} is {str(target)[:40]!r}: the number of the right candidate, 0 to "
            f"{len(candidates) - 1}, is needed."
        )
    return {"question": question, "candidates": list(candidates), "target": int(target)}


CHOICES: tuple[Format, ...] = (Format("classification", frozenset({"input", "output", "target"}), _choice, _choice),)
