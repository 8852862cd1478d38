"""Text in words, where it has spaces and where it has none."""

import re
from collections.abc import Callable
from typing import Any

from collie.interfaces import ConfigError, require

Words = Callable[[str], list[str]]

# CJK ideographs with extensions A to H and compatibility, kana, hangul: scripts whose words no space parts
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U000323af"
_CHARACTERS = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
_WORD = re.compile(r"\w")


def characters(text: str) -> list[str]:
    """Each character of a script without spaces by itself, other letters and digits as words; lower case."""
    return _CHARACTERS.findall(text.lower())


def jieba_words(text: str) -> list[str]:
    """The words that jieba finds, in lower case, without punctuation and spaces.

    Raises:
        MissingExtraError: jieba is not installed.
    """
    return [word for word in _jieba().lcut(text.lower()) if _WORD.search(word)]


def words(name: str, metric: str) -> Words:
    """The function that is called `name`: "jieba" or "char".

    Raises:
        ConfigError: there is none of that name.
        MissingExtraError: jieba is not installed.
    """
    if name == "jieba":
        _jieba()
        return jieba_words
    if name == "char":
        return characters
    raise ConfigError(f'{metric}(tokenizer={name!r}): there are "jieba" and "char", besides None.')


def _jieba() -> Any:
    jieba = require("jieba", "collie-eval[zh]", 'tokenizer="jieba"')
    jieba.setLogLevel("WARNING")  # it tells at length how it loads its dictionary
    return jieba
