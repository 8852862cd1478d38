"""A row on a terminal: where its tokens end, which are trained, and what would not be seen."""

from __future__ import annotations

from dataclasses import dataclass

from collie.recipes._inspection import InspectedRow


@dataclass(frozen=True, slots=True)
class Marks:
    """Signs in the text: around what is trained, between tokens, for a line's end, and around what is coloured."""

    open: str
    close: str
    between: str
    newline: str
    style: str = ""
    plain: str = ""

    @classmethod
    def for_stream(cls, *, unicode: bool, colour: bool) -> Marks:
        """colour: trained tokens are bold and underlined beside their brackets."""
        style, plain = ("\x1b[1;4m", "\x1b[0m") if colour else ("", "")
        if unicode:
            return cls("⟦", "⟧", "│", "↵", style, plain)
        return cls("[[", "]]", "|", "\\n", style, plain)


def shown_row(row: InspectedRow, marks: Marks) -> str:
    """The row's text with marks, a line below one that says how many tokens there are."""
    head = f"row {row.number} of {row.source}"
    if row.reason is not None:
        return f"{head} is left out: {row.reason}"
    count = f"{len(row.ids):,} tokens"
    if row.uncut > len(row.ids):
        count += f" of {row.uncut:,}, the others cut"
    head += f": {count}, {sum(row.trained):,} trained, in {marks.open} {marks.close}"
    return f"{head}\n{_marked(row, marks)}"


def _marked(row: InspectedRow, marks: Marks) -> str:
    pieces: list[str] = []
    inside, waiting = False, False
    for text, trained in zip(row.texts, row.trained, strict=True):
        if trained != inside:
            pieces.append(marks.style + marks.open if trained else marks.close + marks.plain)
            inside = trained
        elif waiting:
            pieces.append(marks.between)
        pieces.append("".join(_visible(letter, marks) for letter in text))
        waiting = not text.endswith("\n") and text != ""
    if inside:
        pieces.append(marks.close + marks.plain)
    return "".join(pieces).rstrip("\n")


def _visible(letter: str, marks: Marks) -> str:
    """A character as it is, or in its escaped form where a terminal would act on it or not show it."""
    if letter == "\n":
        return marks.newline + "\n"
    if letter.isprintable() and (letter.isascii() or marks.newline == "↵"):
        return letter
    return letter.encode("unicode_escape").decode("ascii")
