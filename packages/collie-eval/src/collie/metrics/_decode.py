"""The generated texts themselves."""

from pathlib import Path
from typing import Any

from collie.metrics._base import BaseMetric
from collie.metrics._text import need, one_line, rows_of, text_of

_DEFAULT_FILE = "decode.txt"


class DecodeMetric(BaseMetric):
    """Shows, and on request saves, what a model generated; `get_metric` returns the texts in the order of the dataset.

    Reads `pred` from each result: texts, or rows of token ids, which the evaluator's tokenizer turns into text. Only
    rank 0 prints and writes. A line break inside a text is written as \\n, so that each row is one line.

    Args:
        verbose: print `decoded: TEXT` for each row.
        save_to_file: append each text to a file, one line a row.
        save_path: that file (UTF-8); its folder is made. None means decode.txt in the working directory.
        gather_result: with False only the rows of this rank are shown and returned.
    """

    def __init__(
        self,
        verbose: bool = True,
        save_to_file: bool = False,
        save_path: str | Path | None = None,
        gather_result: bool = True,
    ) -> None:
        super().__init__(gather_result)
        self.verbose = verbose
        self.save_to_file = save_to_file
        self.save_path = Path(_DEFAULT_FILE if save_path is None else save_path)
        self.reset()

    def reset(self) -> None:
        self._texts: list[str] = []

    def update(self, result: dict[str, Any]) -> None:
        need("DecodeMetric", result, "pred", use="use EvaluatorForGeneration")
        texts = [text_of("DecodeMetric", row, self.tokenizer) for row in rows_of(result["pred"])]
        self._texts += texts
        if self.topology.rank == 0:
            self._show(texts)

    def get_metric(self) -> list[str]:
        """The texts of all rows since `reset`."""
        return list(self._texts)

    def _show(self, texts: list[str]) -> None:
        lines = [one_line(text) for text in texts]
        if self.verbose:
            for line in lines:
                print(f"decoded: {line}", flush=True)
        if self.save_to_file:
            self.save_path.parent.mkdir(parents=True, exist_ok=True)
            with self.save_path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
