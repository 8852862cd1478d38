"""The dashboard's own themes, and how roles of text become their colours."""

from functools import lru_cache
from typing import Any

from rich.style import Style
from rich.text import Text
from textual.color import Color
from textual.theme import Theme

from collie.tui._words import Piece

DARK = Theme(
    name="collie",
    primary="#e3a857",
    secondary="#7cb7d6",
    accent="#e3a857",
    foreground="#d9dde5",
    background="#10141a",
    surface="#151a22",
    panel="#1f2731",
    success="#8cc58a",
    warning="#e6c45c",
    error="#ef7a78",
    dark=True,
    variables={
        "border-blurred": "#313c4a",
        "footer-background": "#151a22",
        "footer-key-foreground": "#e3a857",
        "footer-description-foreground": "#8b96a5",
        "scrollbar": "#313c4a",
        "scrollbar-background": "#10141a",
        "scrollbar-corner-color": "#10141a",
        "scrollbar-hover": "#46556a",
        "scrollbar-active": "#e3a857",
        "scrollbar-background-hover": "#10141a",
        "scrollbar-background-active": "#10141a",
    },
)

LIGHT = Theme(
    name="collie-light",
    primary="#9a5b0a",
    secondary="#22688c",
    accent="#9a5b0a",
    foreground="#22272e",
    background="#fbf9f5",
    surface="#f3efe8",
    panel="#e9e3d8",
    success="#2d7a3e",
    warning="#8a6500",
    error="#b3261e",
    dark=False,
    variables={
        "border-blurred": "#cfc6b8",
        "footer-background": "#f3efe8",
        "footer-key-foreground": "#9a5b0a",
        "footer-description-foreground": "#5c6570",
        "scrollbar": "#cfc6b8",
        "scrollbar-background": "#fbf9f5",
        "scrollbar-corner-color": "#fbf9f5",
        "scrollbar-background-hover": "#fbf9f5",
        "scrollbar-background-active": "#fbf9f5",
    },
)


class Roles:
    """Mixed into widgets that paint pieces of text by role; the colours are those of the theme in use."""

    def role(self: Any, name: str) -> Style:
        """The style of a role (see Piece), without a background but for the brand's."""
        if not name:
            return Style.null()
        return _styles(tuple(sorted(self.app.theme_variables.items())))[name]

    def paint(self: Any, *pieces: Piece) -> Text:
        """Pieces in a row."""
        return Text.assemble(*((text, self.role(role)) for text, role in pieces), no_wrap=True, overflow="ellipsis")


@lru_cache(maxsize=8)
def _styles(variables: tuple[tuple[str, str], ...]) -> dict[str, Style]:
    colours = dict(variables)

    def colour(name: str) -> Color:
        return Color.parse(colours[name])

    foreground, background = colour("foreground"), colour("background")
    if foreground.ansi is not None or background.ansi is not None:
        dim = faint = Style(dim=True)  # the terminal's own colours cannot be mixed
    else:
        dim = Style(color=background.blend(foreground, 0.55).rich_color)
        faint = Style(color=background.blend(foreground, 0.25).rich_color)
    return {
        "dim": dim,
        "faint": faint,
        "strong": Style(color=foreground.rich_color, bold=True),
        "accent": Style(color=colour("primary").rich_color),
        "ok": Style(color=colour("success").rich_color),
        "warn": Style(color=colour("warning").rich_color),
        "bad": Style(color=colour("error").rich_color),
        "info": Style(color=colour("secondary").rich_color),
        "brand": Style(color=background.rich_color, bgcolor=colour("primary").rich_color, bold=True),
    }
