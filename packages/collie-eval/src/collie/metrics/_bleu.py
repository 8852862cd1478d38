"""BLEU (Papineni et al. 2002), as sacreBLEU (Post 2018) computes it."""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

from collie.interfaces import ConfigError, require
from collie.metrics._text_metric import TextMetric

# upstream's names for what sacreBLEU has, too: no smoothing, and Chen and Cherry (2014), methods 1 and 3
_SMOOTHING = {"no_smooth": "none", "smooth1": "floor"}
_CHOICES = ("exp", "floor", "add-k", "none")


class BleuMetric(TextMetric):
    """sacreBLEU's corpus BLEU: n-grams are counted over all rows before anything is divided.

    `get_metric` gives {"bleu": …} from 0 to 100; `signature` says how it was computed, in sacreBLEU's words.

    Args:
        split_fn: text → words, in the place of sacreBLEU's tokenizer; the signature then says so.
        ngram: the longest n-grams that count.
        smooth: sacreBLEU's "exp" (its own default), "floor", "add-k" or "none"; "no_smooth" is "none", "smooth1" is
            "floor".
        average: "micro", which is the corpus's score. "macro", a mean of the rows' scores, is refused: sacreBLEU has
            no such number, and a row without a common 4-gram would count as 0.
        gather_result: see TextMetric.
        tokenize: a tokenizer of sacreBLEU's: "13a", "intl", "zh" (Chinese), "char", "none", or one that needs
            packages of its own ("ja-mecab", "ko-mecab", "spm", "flores200", …).
        lowercase: whether case is ignored.

    Raises:
        ConfigError: an option that sacreBLEU does not have, or whose tokenizer lacks its package.
    """

    def __init__(
        self,
        split_fn: Callable[[str], list[str]] | None = None,
        ngram: int = 4,
        smooth: str = "exp",
        average: str = "micro",
        gather_result: bool = True,
        *,
        tokenize: str = "13a",
        lowercase: bool = False,
    ) -> None:
        super().__init__(gather_result)
        if average != "micro":
            raise ConfigError(
                f'BleuMetric(average={average!r}): BLEU is the corpus\'s score here, as sacreBLEU has it: use "micro".'
            )
        if split_fn is not None and tokenize != "13a":
            raise ConfigError(f"BleuMetric: give split_fn or tokenize={tokenize!r}, not both.")
        self.split_fn = split_fn
        self._options: dict[str, Any] = {
            "lowercase": lowercase,
            "smooth_method": _smoothing(smooth),
            "max_ngram_order": _order(ngram),
            "tokenize": "none" if split_fn is not None else tokenize,
            "force": split_fn is not None,  # it would warn of text that is in words already
        }
        self._scorer = self._made()

    def keep(self, text: str, references: list[str]) -> tuple[str, list[str]]:
        if self.split_fn is None:
            return text, references
        return " ".join(self.split_fn(text)), [" ".join(self.split_fn(each)) for each in references]

    def get_metric(self) -> dict[str, float]:
        """{"bleu": 0 … 100}, equal on every rank."""
        texts, references = streams(self.kept())
        return {"bleu": float(self._scorer.corpus_score(texts, references).score)}

    @property
    def signature(self) -> str | None:
        """sacreBLEU's signature of the last score; None before there is one (it names the number of references)."""
        return signature_of(self._scorer, f"|split_fn:{_name(self.split_fn)}" if self.split_fn is not None else "")

    def _made(self) -> Any:
        bleu = require("sacrebleu.metrics", "collie-eval").BLEU
        name = self._options["tokenize"]
        if name not in bleu.TOKENIZERS:
            raise ConfigError(f"BleuMetric(tokenize={name!r}): sacreBLEU has {', '.join(bleu.TOKENIZERS)}.")
        try:
            return bleu(**self._options)
        except (ImportError, RuntimeError) as error:  # each tokenizer says in its own way which package it lacks
            raise ConfigError(f"BleuMetric(tokenize={name!r}): {' '.join(str(error).split())}") from error


def streams(kept: list[tuple[str, list[str]]]) -> tuple[list[str], list[tuple[str | None, ...]]]:
    """The texts, and as many columns of references as the row with most has; None where a row has fewer."""
    return [text for text, _ in kept], list(zip_longest(*(references for _, references in kept)))


def signature_of(scorer: Any, addition: str = "") -> str | None:
    """A sacreBLEU metric's signature, once it has scored."""
    try:
        return f"{scorer.get_signature()}{addition}"
    except ValueError:  # the number of references is part of it
        return None


def _smoothing(name: str) -> str:
    method = _SMOOTHING.get(name, name)
    if method in _CHOICES:
        return method
    reason = ""
    if name in ("smooth2", "nltk_smooth2"):
        reason = ' Adding 1 to the counts of longer n-grams is "add-k".'
    raise ConfigError(f"BleuMetric(smooth={name!r}): sacreBLEU has {', '.join(_CHOICES)}.{reason}")


def _order(ngram: int) -> int:
    if ngram < 1:
        raise ConfigError(f"BleuMetric(ngram={ngram}): give 1 or more.")
    return ngram


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
