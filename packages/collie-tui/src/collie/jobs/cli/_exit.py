"""Exit statuses of collie-tui."""

USAGE = 2
EXIT_CODES = {"finished": 0, "failed": 1, "stopped": 3, "lost": 4, "left": 130}
"""By how a job ended, or "left" for one that was left running."""
