"""The screens: all runs, one run, and the questions and help that stand over them."""

from collie.tui._screens._help import HelpScreen
from collie.tui._screens._run import RunScreen
from collie.tui._screens._runs import RunsScreen
from collie.tui._screens._stop import StopScreen

__all__ = ["HelpScreen", "RunScreen", "RunsScreen", "StopScreen"]
