"""The terminal dashboard: watches runs, and stops them after a question."""

from collie.tui._app import Dashboard, main

__all__ = ["Dashboard", "main"]
