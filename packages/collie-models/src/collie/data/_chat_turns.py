"""Where in the text of a conversation the turns of the assistant stand."""

from __future__ import annotations

from collie.data._chat_messages import Conversation
from collie.data._chat_template import ChatTemplate
from collie.interfaces import DataError

_PROBE = "\ue002"  # of the private use area: a content that no text has

Span = tuple[int, int]


def marked_turns(template: ChatTemplate, conversation: Conversation, text: str, chosen: list[int]) -> list[Span] | None:
    """What {% generation %} holds of the chosen turns; None for a template without such a block.

    Which turn a block belongs to is counted in the conversations that end with each turn.
    """
    spans = template.generated(conversation, text)
    if spans is None or len(chosen) == len(conversation.turns):
        return spans
    counts = [0]
    for message in conversation.turns:
        shorter = template.render(conversation, message + 1)
        counts.append(len(template.generated(conversation, shorter, message + 1) or ()))
    if counts[-1] != len(spans) or counts != sorted(counts):
        raise DataError(
            "which of its {% generation %} blocks belong to which turn cannot be told, since the chat template writes "
            "others where a turn is the last: train_on='all' trains on all of them."
        )
    return [span for turn in chosen for span in spans[counts[turn] : counts[turn + 1]]]


def derived_turns(template: ChatTemplate, conversation: Conversation, text: str, chosen: list[int]) -> list[Span]:
    """Of each chosen turn what the template writes from the end of its generation prompt to the next message.

    The prompt is what the messages before the turn render to, the generation prompt behind them; the turn's end
    is where the messages up to and with it end. Both are beginnings of `text`, unless the template writes earlier
    messages otherwise in a longer conversation. Then the place is found by a probe: the same conversation with an
    odd character for the turn's content.

    Raises DataError: neither tells the turn's place.
    """
    return [_span(template, conversation, text, turn) for turn in chosen]


def _span(template: ChatTemplate, conversation: Conversation, text: str, turn: int) -> Span:
    message = conversation.turns[turn]
    prompts = template.prompts(conversation, message)
    whole = text if message + 1 == len(conversation.messages) else template.render(conversation, message + 1)
    start = next((len(prompt) for prompt in prompts if text.startswith(prompt)), None)
    end = len(whole) if text.startswith(whole) else None
    if start is None or end is None:
        start, end = _probed(template, conversation, text, turn, prompts, (start, end))
    if start >= end:
        raise DataError(f"the chat template writes nothing for its turn {turn} (message {message}).")
    return start, end


def _probed(
    template: ChatTemplate,
    conversation: Conversation,
    text: str,
    turn: int,
    prompts: list[str],
    known: tuple[int | None, int | None],
) -> Span:
    """The ends that are not `known`, by what stands before and behind a probe in the whole conversation.

    The same probe with nothing behind it shows what of that is the turn's own: its head, and its tail.
    """
    message = conversation.turns[turn]
    probe = {"role": "assistant", "content": _PROBE}
    probed = _replaced(conversation, message, probe)
    before, behind = _around(template.render(probed), turn)
    history = template.render(conversation, message) if message else ""
    local, tail = _around(template.render(probed, message + 1), turn)
    heads = [prompt[len(history) :] for prompt in prompts if prompt.startswith(history)]
    if not local.startswith(history) or not heads:
        raise DataError(_unknown(turn, "what it writes before the turn changes with the turn"))
    start, end = known
    if start is None:
        start = _head_end(text, before, local[len(history) :], heads, turn)
    if end is None:
        if not (text.endswith(behind) and behind.startswith(tail)):
            raise DataError(_unknown(turn, f"it ends the turn otherwise where others follow than with {tail!r}"))
        end = len(text) - len(behind) + len(tail)
    return start, end


def _head_end(text: str, before: str, head: str, heads: list[str], turn: int) -> int:
    """Where the generation prompt of a turn ends whose probe has `before` before it, in the end a form of `head`."""
    plain = heads[-1]  # the shortest generation prompt
    if before.endswith(head):
        begin = len(before) - len(head)
    elif plain and before.endswith(plain):  # of a head with an empty think block, say, which only a last turn has
        begin = len(before) - len(plain)
    else:
        raise DataError(_unknown(turn, f"it writes the turn otherwise than after its generation prompt {plain!r}"))
    if text.startswith(before[:begin]):
        for prompt in heads:
            if text.startswith(prompt, begin):
                return begin + len(prompt)
    raise DataError(_unknown(turn, f"it writes the turn otherwise than after its generation prompt {plain!r}"))


def _around(text: str, turn: int) -> tuple[str, str]:
    if text.count(_PROBE) != 1:
        raise DataError(_unknown(turn, "it does not write the turn's content just once"))
    before, _, behind = text.partition(_PROBE)
    return before, behind


def _replaced(conversation: Conversation, message: int, other: dict[str, str]) -> Conversation:
    messages = [*conversation.messages[:message], other, *conversation.messages[message + 1 :]]
    return Conversation(messages, conversation.tools, conversation.turns, conversation.untrained)


def _unknown(turn: int, why: str) -> str:
    return (
        f"where its turn {turn} stands in the chat template's text cannot be told: {why}. Train on the last turn "
        "(train_on='last'), make a row of each turn, or give a chat_template with {% generation %}."
    )
