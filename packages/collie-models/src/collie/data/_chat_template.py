"""A tokenizer's chat template: the text of a conversation, and what the template itself marks as generated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateSyntaxError

from collie.data._chat_messages import Conversation
from collie.data._rows import check_text
from collie.interfaces import DataError, MissingExtraError, nearest

_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_OPEN, _CLOSE = "\ue000", "\ue001"  # of the private use area: no text has them
_LONGEST_NAME = 256  # characters of a file's name: the system has an error of its own for longer ones
_THINKING = ("enable_thinking", "thinking")  # what templates call the switch of their reasoning


class ChatTemplate:
    """Renders conversations as transformers does, in its sandbox.

    Args:
        tokenizer: of transformers.
        template: Jinja text, the path of a file of it, or one of the tokenizer's named templates; None for the
            tokenizer's own, which may be another for conversations with tools.
        options: further variables of the template, as apply_chat_template takes them.

    Raises:
        DataError: there is no such template, or its text is no Jinja.
    """

    def __init__(self, tokenizer: Any, template: str | Path | None, options: Mapping[str, Any]) -> None:
        self._tokenizer, self._options = tokenizer, dict(options)
        self._given = None if template is None else _text_of(template, _named(tokenizer))
        self._marked = {source: _mark(source) for source in self.sources()}
        for source in self._marked:
            self._compile(source)

    def sources(self) -> list[str]:
        """The texts of all templates that a conversation may be rendered with."""
        if self._given is not None:
            return [self._given]
        return list(dict.fromkeys([self._source(None), self._source([{}])]))

    def render(
        self, conversation: Conversation, upto: int | None = None, *, prompt: bool = False, **options: Any
    ) -> str:
        """The text of the first `upto` messages (None: of all), with `prompt` the generation prompt behind it.

        Raises DataError with what the template says, where it does not take the conversation.
        """
        messages = conversation.messages[:upto]
        if not messages:
            raise DataError("nothing comes before its first turn, so that no prompt would lead to it.")
        source = self._source(conversation.tools)
        return self._checked(source, messages, conversation.tools, add_generation_prompt=prompt, **options)

    def prompts(self, conversation: Conversation, upto: int) -> list[str]:
        """Prompts that an engine may make of the first `upto` messages, each with its generation prompt; longest first.

        A template with a switch for thoughts may open a think block behind the prompt, or write an empty one, as it
        is set: each is one more prompt.
        """
        source = self._source(conversation.tools)
        names = [name for name in _THINKING if re.search(rf"\b{name}\b", source)]
        switches: list[dict[str, Any]] = [{}, *({name: value} for name in names for value in (False, True))]
        found = {self.render(conversation, upto, prompt=True, **switch) for switch in switches}
        return sorted(found, key=len, reverse=True)

    def generated(self, conversation: Conversation, text: str, upto: int | None = None) -> list[tuple[int, int]] | None:
        """Spans (start, end) of `text` that stand between {% generation %} and its end; None for a template without.

        Found by having a copy of the template write a mark at either end of such a block. transformers' own count of
        characters goes wrong where the block stands in a macro or a filter; here the text then differs.

        Raises DataError: with the marks the template writes another text.
        """
        marked = self._marked[self._source(conversation.tools)]
        if marked is None:
            return None
        told = self._checked(marked, conversation.messages[:upto], conversation.tools)
        starts, ends, place = [], [], 0
        for piece in re.split(f"([{_OPEN}{_CLOSE}])", told):
            if piece == _OPEN:
                starts.append(place)
            elif piece == _CLOSE:
                ends.append(place)
            else:
                place += len(piece)
        if re.sub(f"[{_OPEN}{_CLOSE}]", "", told) != text or len(starts) != len(ends):
            raise DataError(
                "the chat template works on what stands in its {% generation %} (a filter or a macro around it), so "
                "that its place is not known: put the block directly around the turn's text."
            )
        return list(zip(starts, ends, strict=True))

    def _source(self, tools: list[Any] | None) -> str:
        if self._given is not None:
            return self._given
        try:
            source: str = self._tokenizer.get_chat_template(None, tools)
        except ValueError as error:
            names = sorted(_named(self._tokenizer))
            have = f"several chat templates ({', '.join(names)}) and none for all" if names else "no chat template"
            raise DataError(f"the tokenizer has {have}: give chat_template=… (text, a file or a name).") from error
        return source

    def _compile(self, source: str) -> None:
        try:
            self._apply(source, [{"role": "user", "content": ""}], None)
        except TemplateSyntaxError as error:
            raise DataError(f"the chat template is no Jinja: line {error.lineno}, {error.message}.") from error
        except ImportError as error:  # no Jinja, or one with known holes in its sandbox
            raise MissingExtraError(f"chat templates need Jinja: {error}", name="jinja2") from error
        except Exception:  # it compiles, and does not take this conversation: each row will hear what it says
            pass

    def _checked(self, source: str, messages: list[Any], tools: list[Any] | None, **options: Any) -> str:
        try:
            text = self._apply(source, messages, tools, **options)
        except Exception as error:  # a template is a program of its own: whatever it fails with, it is about this row
            raise DataError(f"the chat template does not take it: {error}") from error
        check_text(text, "its text")
        return text

    def _apply(self, source: str, messages: list[Any], tools: list[Any] | None, **options: Any) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=source, tokenize=False, **{**self._options, **options}
        )
        return text


def _mark(source: str) -> str | None:
    """`source` with a mark at either end of each generation block; None where it has no such block.

    The tags that come first and last keep the signs for white space of the tag that they stand for.
    """

    def tag(match: re.Match[str]) -> str:
        before, end, after = match.groups(default="")
        if end:
            return f"{{%{before} endgeneration %}}{{{{ '{_CLOSE}' }}}}{{% endif {after}%}}"
        return f"{{%{before} if true %}}{{{{ '{_OPEN}' }}}}{{% generation {after}%}}"

    marked, count = _TAG.subn(tag, source)
    return marked if count else None


def _named(tokenizer: Any) -> dict[str, str]:
    templates = getattr(tokenizer, "chat_template", None)
    return dict(templates) if isinstance(templates, Mapping) else {}


def _text_of(template: str | Path, named: Mapping[str, str]) -> str:
    if isinstance(template, str):
        if template in named:
            return named[template]
        if "{{" in template or "{%" in template:
            return template
    path = Path(template)
    if len(path.name) < _LONGEST_NAME and path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text ({error}): save it as UTF-8.") from error
    near = nearest(str(template), named)
    hint = f" Did you mean {near!r}?" if near else f" The tokenizer's are: {', '.join(sorted(named))}." if named else ""
    raise DataError(
        f"chat_template={str(template)[:80]!r} is neither Jinja text, nor a file, nor one of the tokenizer's named "
        f"templates.{hint}"
    )
