"""The command collie-tui: run, ls, stop, and the dashboard. Only the dashboard loads textual."""

from collie.jobs.cli._main import main

__all__ = ["main"]
