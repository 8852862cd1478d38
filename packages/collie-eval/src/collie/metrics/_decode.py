"""The generated texts themselves."""

from pathlib import Path
from typing import Any

from torch import Tensor

from collie.interfaces import DataError
from collie.metrics._base import BaseMetric
from collie.metrics._text import decode, is_ids, one_line

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
        if "pred" not in result:
            raise DataError(
                f"DecodeMetric needs pred in the result of eval_fn, which has {', '.join(result) or 'no key'}: "
                "use EvaluatorForGeneration, or return pred from eval_fn."
            )
        texts = [self._text(row) for row in _rows(result["pred"])]
        self._texts += texts
        if self.topology.rank == 0:
            self._show(texts)

    def get_metric(self) -> list[str]:
        """The texts of all rows since `reset`."""
        return list(self._texts)

    def _text(self, row: Any) -> str:
        if isinstance(row, str):
            return row
        if not is_ids(row):
            raise DataError(
                f"DecodeMetric reads pred as texts or rows of token ids, and got a row {type(row).__name__}."
            )
        if self.tokenizer is None:
            raise DataError("DecodeMetric got token ids and the evaluator has no tokenizer: give it tokenizer=…")
        return decode(row, self.tokenizer)

    def _show(self, texts: list[str]) -> None:
        lines = [one_line(text) for text in texts]
        if self.verbose:
            for line in lines:
                print(f"decoded: {line}", flush=True)
        if self.save_to_file:
            self.save_path.parent.mkdir(parents=True, exist_ok=True)
            with self.save_path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)


def _rows(pred: Any) -> list[Any]:
    """One item a row; a single text or a single row of ids is one row."""
    if isinstance(pred, str):
        return [pred]
    if isinstance(pred, Tensor):
        return [pred] if pred.dim() == 1 else list(pred)
    rows = list(pred)
    return [rows] if rows and is_ids(rows) else rows
