"""What a newcomer sees: three commands to copy."""

from pathlib import Path

from rich.text import Text
from textual.widgets import Static

from collie.tui._theme import Roles

_COMMANDS = (
    ("Start a script on every GPU and watch it:", "collie-tui run train.py"),
    ("Two ranks, a name, arguments for the script:", "collie-tui run --nproc 2 --name first train.py --lr 1e-3"),
    ("Plain torchrun shows up here as well:", "torchrun --standalone --nproc_per_node 2 train.py"),
)


class Welcome(Static, Roles):
    """The empty state."""

    def show(self, root: Path) -> None:
        """Write it."""
        text = Text("\n\n")
        text.append_text(self.paint(("No runs yet", "strong"), (f" in {root}\n\n", "dim")))
        for told, command in _COMMANDS:
            text.append_text(self.paint((f"{told}\n", "dim"), ("  $ ", "dim"), (f"{command}\n\n", "accent")))
        text.append_text(self.paint(("This screen finds it by itself. ", "dim"), ("q", "accent"), (" leaves.", "dim")))
        self.update(text)
