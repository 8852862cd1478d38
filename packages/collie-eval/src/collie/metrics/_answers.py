"""Short answers: the same text, and the words in common (SQuAD, Rajpurkar et al. 2016; MLQA, Lewis et al. 2020)."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable

from collie.interfaces import ConfigError
from collie.metrics._text_metric import TextMetric, mean
from collie.metrics._words import UNSPACED, Words, words

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ENGLISH_MARKS = str.maketrans("", "", string.punctuation)
_CHARACTER = re.compile(f"([{UNSPACED}])")


def squad(text: str) -> str:
    """As SQuAD's own evaluation: lower case, without ASCII punctuation, without a, an, the, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_ENGLISH_MARKS)).split())


def chinese(text: str) -> str:
    """As MLQA's evaluation: lower case, without punctuation of any script, a space between Chinese characters."""
    kept = (char for char in text.lower() if char not in string.punctuation and unicodedata.category(char)[0] != "P")
    return " ".join(_CHARACTER.sub(r" \1 ", "".join(kept)).split())


_NORMALISE: dict[str, Callable[[str], str]] = {"squad": squad, "zh": chinese, "none": str}


class ExactMatchMetric(TextMetric):
    """The share of rows, from 0 to 1, whose text is one of its references; {"exact_match": …}.

    Args:
        normalise: what is done to both first: "squad" (lower case, no ASCII punctuation, no articles), "zh" (lower
            case, no punctuation of any script, no matter whether spaces are around Chinese characters), or "none".
        gather_result: see TextMetric.

    Raises:
        ConfigError: another `normalise`.
    """

    def __init__(self, normalise: str = "squad", gather_result: bool = True) -> None:
        super().__init__(gather_result)
        self._normalise = _normalisation(type(self).__name__, normalise)
        self._signature = f"normalise:{normalise}"

    def keep(self, text: str, references: list[str]) -> bool:
        return self._normalise(text) in {self._normalise(each) for each in references}

    def get_metric(self) -> dict[str, float]:
        """{"exact_match": 0 … 1}, equal on every rank."""
        return {"exact_match": mean(self.kept())}

    @property
    def signature(self) -> str:
        """What was done to texts before they were compared."""
        return self._signature


class TokenF1Metric(TextMetric):
    """The mean over rows of F1 between the words of the text and of its best reference, from 0 to 1; {"f1": …}.

    Words count as often as they are in both (SQuAD). Where one side has no word, F1 is 1 if neither has, else 0.

    Args:
        normalise: as of ExactMatchMetric; with "zh" each Chinese character is a word, as in MLQA's evaluation.
        tokenizer: how words are found afterwards: None for spaces, "jieba" (the extra `zh`) for Chinese words, "char"
            for Chinese characters.
        gather_result: see TextMetric.

    Raises:
        ConfigError: another `normalise` or `tokenizer`.
        MissingExtraError: jieba is not installed.
    """

    def __init__(self, normalise: str = "squad", tokenizer: str | None = None, gather_result: bool = True) -> None:
        super().__init__(gather_result)
        self._normalise = _normalisation(type(self).__name__, normalise)
        if normalise == "zh" and tokenizer is not None:
            self._normalise = str  # the tokenizer itself drops case and punctuation, and must see words unparted
        self._words: Words = words(tokenizer, type(self).__name__) if tokenizer is not None else str.split
        self._signature = f"normalise:{normalise}|tok:{tokenizer or 'space'}"

    def keep(self, text: str, references: list[str]) -> float:
        found = self._words(self._normalise(text))
        return max(_f1(found, self._words(self._normalise(each))) for each in references)

    def get_metric(self) -> dict[str, float]:
        """{"f1": 0 … 1}, equal on every rank."""
        return {"f1": mean(self.kept())}

    @property
    def signature(self) -> str:
        """What was done to texts before they were compared."""
        return self._signature


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(found), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _normalisation(metric: str, name: str) -> Callable[[str], str]:
    if name not in _NORMALISE:
        raise ConfigError(f"{metric}(normalise={name!r}): there are {', '.join(_NORMALISE)}.")
    return _NORMALISE[name]
