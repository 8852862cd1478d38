"""chrF and chrF++ (Popović 2015, 2017), as sacreBLEU computes them."""

from collie.interfaces import ConfigError, require
from collie.metrics._bleu import signature_of, streams
from collie.metrics._text_metric import TextMetric


class ChrfMetric(TextMetric):
    """sacreBLEU's corpus chrF: F of character n-grams, which needs no words and so fits any script.

    `get_metric` gives {"chrf": …} from 0 to 100; `signature` says how it was computed.

    Args:
        char_order: the longest n-grams of characters.
        word_order: the longest n-grams of words; 0 is chrF, 2 is chrF++.
        beta: how many times recall weighs as much as precision.
        lowercase: whether case is ignored.
        whitespace: whether spaces are characters.
        gather_result: see TextMetric.

    Raises:
        ConfigError: an order or beta is out of range.
    """

    def __init__(
        self,
        char_order: int = 6,
        word_order: int = 0,
        beta: int = 2,
        lowercase: bool = False,
        whitespace: bool = False,
        gather_result: bool = True,
    ) -> None:
        super().__init__(gather_result)
        if char_order < 1 or word_order < 0 or beta < 1:
            raise ConfigError(
                f"ChrfMetric(char_order={char_order}, word_order={word_order}, beta={beta}): give at least 1, 0 and 1."
            )
        self._scorer = require("sacrebleu.metrics", "collie-eval").CHRF(
            char_order=char_order, word_order=word_order, beta=beta, lowercase=lowercase, whitespace=whitespace
        )

    def keep(self, text: str, references: list[str]) -> tuple[str, list[str]]:
        return text, references

    def get_metric(self) -> dict[str, float]:
        """{"chrf": 0 … 100}, equal on every rank."""
        texts, references = streams(self.kept())
        return {"chrf": float(self._scorer.corpus_score(texts, references).score)}

    @property
    def signature(self) -> str | None:
        """sacreBLEU's signature of the last score; None before there is one."""
        return signature_of(self._scorer)
