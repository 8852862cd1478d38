"""The datasets that evaluators read: prompts to answer, and questions with a list of answers to choose from."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

from collie.data._choices import CANDIDATES, CHOICES, ChoiceEncoder, Style
from collie.data._dataset import CollieDatasetForTraining
from collie.data._encode import TextEncoder
from collie.data._encoders import Lacking, RowEncoder
from collie.data._formats import PROCESSED, Formats
from collie.data._prompts import PROMPTS, PromptEncoder, TokenPromptEncoder
from collie.data._rows import TOKEN_FIELDS
from collie.data._tokenise import Encoder
from collie.interfaces import DataError


class CollieDatasetForGeneration(CollieDatasetForTraining):
    """Prompts, and what is to be answered if that is known, for EvaluatorForGeneration.

    Rows have the formats of CollieDatasetForTraining, and may lack their output. The prompt of input/output and alpaca
    rows is all before the output; of messages and sharegpt the turns before the last one of the assistant, with
    the template's generation prompt behind them; of a text the text. An output may be a list of references.

    `dataset[3]` is {"input_ids", "attention_mask", "labels": lists of int, "target": str | [str, …] | None}: the prompt
    alone, without eos, its labels all -100, and the answer's text. A row that has input_ids is taken as it is, labels
    included: its prompt ends before its first label that is not -100, and without labels it is all prompt.

    The arguments are those of CollieDatasetForTraining, but for
        max_length: the most tokens of a prompt. It is not cut: a longer one cannot be used.
        train_on, train_on_end: must be left out.

    Raises:
        DataError: as CollieDatasetForTraining; also a prompt that is empty or longer than max_length.
    """

    _uses_the_tokenizers_template = True  # for conversations

    def _encoder(self, format: str | None) -> RowEncoder:
        processed = TokenPromptEncoder(self.max_length)
        prompts: Encoder | Lacking = (
            self._prompts()
            if self.tokenizer is not None
            else Lacking("text", f"there is no tokenizer: {type(self).__name__}(rows, tokenizer).")
        )
        encoders = {PROCESSED: processed, **dict.fromkeys(("messages", "text", "input"), prompts)}
        return RowEncoder(Formats(PROMPTS, format), encoders, chat=self.chat_template is not None)

    def _prompts(self) -> PromptEncoder:
        if self.train_on != "all" or not self.train_on_end:
            what = f"train_on={self.train_on!r}" if self.train_on_end else "train_on_end=False"
            raise DataError(f"{what}: {type(self).__name__} trains on nothing; leave it out.")
        if not isinstance(self.max_length, int):
            raise DataError(f"max_length={self.max_length!r}: give a whole number of tokens, or -1 for no limit.")
        if self.max_length != -1 and self.max_length < 1:
            raise DataError(f"max_length={self.max_length} leaves no prompt: give at least 1, or -1 for no limit.")
        chat = None
        if self.chat_template is None and self.chat_template_kwargs and not self._uses_the_tokenizers_template:
            raise DataError(
                f"chat_template_kwargs={dict(self.chat_template_kwargs)}: {type(self).__name__} uses a chat template "
                "only where chat_template gives one (tokenizer.chat_template, for the tokenizer's own)."
            )
        if self.chat_template is not None or getattr(self.tokenizer, "chat_template", None) is not None:
            from collie.data._chat_prompts import ChatPrompts

            chat = ChatPrompts(self.tokenizer, self.chat_template, self.chat_template_kwargs)
        return PromptEncoder(TextEncoder(self.tokenizer, self.add_special_tokens), chat, self.max_length)


class CollieDatasetForClassification(CollieDatasetForGeneration):
    """Questions with candidate answers, for EvaluatorForClassfication.

    A row of `dataset` is {"input": str, "output": [str, …], "target": int}: the question, its candidates, and which of
    them is right (0 is the first).

    What `dataset[3]` is depends on `style`:
        "harness" (lm-evaluation-harness): each candidate is scored by the loss of its own tokens behind the input.
            {"input_ids": [[int, …], …], "attention_mask": [[int, …], …], "labels": [[int, …], …], "target": int}
            with one inner list a candidate: input and candidate joined, labels -100 over the input. The inner lists
            have the lengths of their candidates, and rows may have different numbers of candidates. No eos follows
            a candidate: the harness scores none.
        "helm" (Liang et al. 2022): the candidates are listed in the prompt as "A. …", "B. …", and the letter is
            to be predicted.
            {"input_ids": [int, …], "attention_mask": [int, …], "labels": [-100, …], "target": int}
            the prompt alone, which ends with "Answer:"; target is the index of the right candidate, 0 for A.
    With chat_template the input is a turn of the user, with the generation prompt behind it.

    The arguments are those of CollieDatasetForGeneration, and `style`, which saved rows know by themselves. max_length:
    the most tokens of an input with a candidate.

    Raises:
        DataError: another style; or as CollieDatasetForGeneration, also for fewer than two candidates, an empty one,
            a target that is none of them, and more than 26 in the style "helm".
    """

    _uses_the_tokenizers_template = False

    def __init__(
        self,
        dataset: Any,
        tokenizer: Any = None,
        add_special_tokens: bool = True,
        shuffle: bool = False,
        seed: int = 1024,
        max_length: int = -1,
        style: Style = "harness",
        **options: Any,
    ) -> None:
        self.style = style
        super().__init__(dataset, tokenizer, add_special_tokens, shuffle, seed, max_length, **options)

    def _encoder(self, format: str | None) -> RowEncoder:
        if self.tokenizer is None:
            raise DataError(f"the rows are text and there is no tokenizer: {type(self).__name__}(rows, tokenizer).")
        chat = self.chat_template is not None
        encoder = ChoiceEncoder(self._prompts(), self.style, chat=chat)
        return RowEncoder(Formats(CHOICES, format), {CANDIDATES: encoder}, chat=chat)

    def _shown(self, row: dict[str, Any]) -> dict[str, Any]:
        if CANDIDATES not in row:
            return row
        ends = accumulate(row.pop(CANDIDATES), initial=0)
        spans = [slice(start, end) for start, end in pairwise(ends)]
        return {**row, **{name: [row[name][span] for span in spans] for name in TOKEN_FIELDS}}
