"""The parts that the screens are put together from."""

from collie.tui._widgets._ask import AskPane, Question
from collie.tui._widgets._banner import Banner
from collie.tui._widgets._chart import Chart
from collie.tui._widgets._evals import EvalsPane, EvaluationTable
from collie.tui._widgets._evaluation import EvaluationPane
from collie.tui._widgets._facts import Facts
from collie.tui._widgets._log import LogPane
from collie.tui._widgets._panel import RunPanel
from collie.tui._widgets._ranks import RankTable
from collie.tui._widgets._runs import RunTable
from collie.tui._widgets._table import Column, Row, Table
from collie.tui._widgets._welcome import Welcome

__all__ = [
    "AskPane",
    "Banner",
    "Chart",
    "Column",
    "EvalsPane",
    "EvaluationPane",
    "EvaluationTable",
    "Facts",
    "LogPane",
    "Question",
    "RankTable",
    "Row",
    "RunPanel",
    "RunTable",
    "Table",
    "Welcome",
]
