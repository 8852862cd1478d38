"""ROUGE (Lin 2004), as Google's rouge-score computes it."""

import re
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version

from collie.interfaces import ConfigError, require
from collie.metrics._text_metric import TextMetric, mean
from collie.metrics._words import words

_STATS = {"f": "fmeasure", "p": "precision", "r": "recall"}
_KIND = re.compile(r"rouge-?([1-9]|l|lsum)", re.IGNORECASE)


class RougeMetric(TextMetric):
    """The mean over rows of rouge-score's numbers, from 0 to 1. Of several references the one with the best F counts.

    `get_metric` gives F as {"rouge1", "rouge2", "rougeL"}; `signature` says how it was computed.

    Args:
        metrics: which: "rouge1" … "rouge9", "rougeL", "rougeLsum" (lines are sentences); also written "rouge-1",
            "rouge-l". None means rouge1, rouge2, rougeL.
        stats: of "f", "p" (precision) and "r" (recall); those of p and r are called "rouge1_p", "rouge1_r".
        split_fn: text → words, in the place of rouge-score's tokenizer.
        gather_result: see TextMetric.
        use_stemmer: Porter's stemmer, for English; only with rouge-score's own tokenizer.
        tokenizer: None for rouge-score's own, which knows nothing but a–z and digits; for Chinese "jieba" (words; the
            extra `zh`) or "char" (characters).

    Raises:
        ConfigError: an unknown name, or options that exclude each other.
        MissingExtraError: jieba is not installed.
    """

    def __init__(
        self,
        metrics: Sequence[str] | None = None,
        stats: Sequence[str] | None = None,
        split_fn: Callable[[str], list[str]] | None = None,
        gather_result: bool = True,
        *,
        use_stemmer: bool = False,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__(gather_result)
        self._kinds = [_kind(name) for name in (metrics if metrics is not None else ("rouge1", "rouge2", "rougeL"))]
        self._stats = list(stats if stats is not None else ("f",))
        if not self._kinds or not self._stats or not set(self._stats) <= set(_STATS):
            raise ConfigError(
                f"RougeMetric(metrics={metrics!r}, stats={stats!r}): give at least one; stats are f, p, r."
            )
        if split_fn is not None and tokenizer is not None:
            raise ConfigError(f"RougeMetric: give split_fn or tokenizer={tokenizer!r}, not both.")
        if use_stemmer and (split_fn is not None or tokenizer is not None):
            raise ConfigError("RougeMetric(use_stemmer=True): Porter's stemmer is for rouge-score's own tokenizer.")
        split = words(tokenizer, "RougeMetric") if tokenizer is not None else split_fn
        self._own_words = split is None
        self._scorer = require("rouge_score.rouge_scorer", "collie-eval").RougeScorer(
            self._kinds, use_stemmer=use_stemmer, tokenizer=None if split is None else _Tokenizer(split)
        )
        said = tokenizer or (getattr(split_fn, "__qualname__", "own") if split_fn is not None else "default")
        self._signature = f"stemmer:{'yes' if use_stemmer else 'no'}|tok:{said}|agg:mean"
        self._references: set[int] = set()

    def reset(self) -> None:
        super().reset()
        self._references = set()

    def keep(self, text: str, references: list[str]) -> tuple[int, list[float]]:
        if self._own_words:
            _warn_of_other_scripts(references)
        scores = self._scorer.score_multi(references, text)
        numbers = [float(getattr(scores[kind], _STATS[stat])) for kind in self._kinds for stat in self._stats]
        return len(references), numbers

    def get_metric(self) -> dict[str, float]:
        """Name → mean over all rows, equal on every rank."""
        kept = self.kept()
        self._references = {count for count, _ in kept}
        names = [kind if stat == "f" else f"{kind}_{stat}" for kind in self._kinds for stat in self._stats]
        return {name: mean(numbers[at] for _, numbers in kept) for at, name in enumerate(names)}

    @property
    def signature(self) -> str | None:
        """How the last numbers were computed, in the manner of sacreBLEU; None before there are any."""
        if not self._references:
            return None
        count = "var" if len(self._references) > 1 else min(self._references)
        return f"nrefs:{count}|{self._signature}|version:rouge_score-{version('rouge_score')}"


class _Tokenizer:
    """A function in the form that rouge-score asks for."""

    def __init__(self, split: Callable[[str], list[str]]) -> None:
        self.tokenize = split


def _kind(name: str) -> str:
    match = _KIND.fullmatch(name)
    if match is None:
        raise ConfigError(f"RougeMetric has rouge1 … rouge9, rougeL and rougeLsum, and not {name!r}.")
    return {"l": "rougeL", "lsum": "rougeLsum"}.get(match[1].lower(), f"rouge{match[1]}")


def _warn_of_other_scripts(references: list[str]) -> None:
    for text in references:
        if text.strip() and not re.search("[a-zA-Z0-9]", text) and re.search(r"\w", text):
            warnings.warn(
                f"RougeMetric: rouge-score's own tokenizer sees no word in {text[:20]!r}, and its score is 0: "
                'for Chinese text give tokenizer="jieba" or tokenizer="char".',
                stacklevel=2,
            )
