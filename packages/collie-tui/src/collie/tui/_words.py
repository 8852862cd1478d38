"""What the dashboard says: states, facts of a run, costs of a stop. Plain strings with the role of each piece."""

from statistics import median
from textwrap import shorten

from collie.jobs import (
    RankView,
    RunView,
    State,
    Summary,
    format_age,
    format_ago,
    format_bytes,
    format_count,
    format_duration,
    format_number,
    format_progress,
)

Piece = tuple[str, str]
"""A text and its role: "" plain, or dim, faint, strong, accent, ok, warn, bad, info (a theme gives them colours)."""

_ALERT_WIDTH = 150  # characters: two lines, and the numbers below it stay in sight

_GLYPHS: dict[str, Piece] = {
    "starting": ("◐", "info"),
    "running": ("●", "ok"),
    "evaluating": ("◈", "ok"),
    "saving": ("▼", "ok"),
    "stalled": ("▲", "bad"),
    "unmanaged": ("◌", "ok"),
    "stopping": ("◑", "warn"),
    "stopped": ("■", "warn"),
    "finished": ("✓", "info"),
    "failed": ("✗", "bad"),
    "lost": ("?", "bad"),
    "unreadable": ("!", "bad"),
}


def state_piece(summary: Summary) -> Piece:
    """A glyph and the word: no colour is the only sign."""
    glyph, role = _GLYPHS.get(summary.state_word, ("·", ""))
    return (f"{glyph} {summary.state_word}", role)


def progress(summary: Summary) -> str:
    """1240/4800, or what of it is known."""
    return format_progress(summary.step, summary.total)


def age(t: float | None, now: float) -> str:
    """Time since `t`."""
    return format_age(None if t is None else now - t)


def ago(t: float | None, now: float) -> str:
    """Time since `t` in a sentence: "now", "12s ago", or "—"."""
    return format_ago(None if t is None else now - t)


def is_stale(summary: Summary, pace: float | None, now: float) -> bool:
    """Whether a live run has been silent for longer than its own pace explains; a frozen chart lies."""
    if not summary.status.live or summary.t is None:
        return False
    return now - summary.t > max(30.0, 10 * (pace or 0.0))


def slowest(ranks: tuple[RankView, ...]) -> tuple[RankView, float] | None:
    """The rank with the longest step and how much longer it is than the median, None for fewer than two ranks."""
    timed = [rank for rank in ranks if rank.seconds]
    if len(timed) < 2:
        return None
    middle = median(rank.seconds or 0.0 for rank in timed)
    last = max(timed, key=lambda rank: rank.seconds or 0.0)
    return (last, (last.seconds or 0.0) / middle - 1) if middle > 0 else None


def fact_lines(view: RunView, now: float) -> list[list[Piece]]:
    """What to know of a run at a glance, most important first: the outcome, the numbers, the ranks, the ages."""
    lines = _outcome_lines(view)
    lines += _alert_lines(view, now)
    lines.append(_number_line(view.summary))
    lines.append(_rank_line(view))
    lines.append(_age_line(view, now))
    return [line for line in lines if line]


def _outcome_lines(view: RunView) -> list[list[Piece]]:
    status = view.summary.status
    if status.state is State.FAILED:
        return [[("✗ ", "bad"), (status.message or "failed without a reason", "bad")]]
    if status.message and status.state is not State.FINISHED:
        role = "bad" if status.state is State.LOST else "warn" if status.managed else "dim"
        return [[(status.message, role)]]
    return []


def _alert_lines(view: RunView, now: float) -> list[list[Piece]]:
    """The newest warning or error that a rank raised."""
    if not view.alerts:
        return []
    alert = view.alerts[-1]
    at = "" if alert.step is None else f" at step {alert.step}"
    role = "bad" if alert.level in ("error", "critical") else "warn"
    message = shorten(alert.message, _ALERT_WIDTH, placeholder="…")
    told = f"▲ {alert.level}, rank {alert.rank}{at}, {ago(alert.t, now)}: {message}"
    return [[(told, role)]]


def _number_line(summary: Summary) -> list[Piece]:
    line: list[Piece] = [("loss ", "dim"), (format_number(summary.loss), "strong")]
    if summary.lr is not None:
        line += [("  lr ", "dim"), (format_number(summary.lr), "")]
    if summary.grad_norm is not None:
        line += [("  grad ", "dim"), (format_number(summary.grad_norm), "")]
    line += [("  ", ""), (format_count(summary.throughput), ""), (" tok/s", "dim")]
    if summary.status.live:
        line += [("  eta ", "dim"), (format_duration(summary.eta), "")]
    return line


def _rank_line(view: RunView) -> list[Piece]:
    ranks = view.ranks
    expected = view.summary.nproc or len(ranks)
    world = next((rank.world_size for rank in ranks if rank.world_size), expected)
    alive = sum(rank.outcome is None for rank in ranks)
    line: list[Piece] = []
    if view.summary.status.live:
        line += [(f"{alive}/{world}", "ok" if alive == world else "warn"), (" ranks", "dim")]
    else:
        line += [(f"{world}", ""), (" rank" if world == 1 else " ranks", "dim")]
    last = slowest(ranks)
    if last is not None and last[1] >= 0.05:
        line += [("  slowest ", "dim"), (f"r{last[0].rank} +{last[1]:.0%}", "warn" if last[1] > 0.2 else "")]
    heaviest = max((rank for rank in ranks if rank.memory), key=lambda rank: rank.memory or 0, default=None)
    if heaviest is not None:
        line += [("  memory ", "dim"), (format_bytes(heaviest.memory), ""), (f" (r{heaviest.rank})", "dim")]
    if view.summary.epoch is not None:
        line += [("  epoch ", "dim"), (str(view.summary.epoch + 1), "")]
    return line


def _age_line(view: RunView, now: float) -> list[Piece]:
    pace = view.ranks[0].pace if view.ranks else None
    stale = is_stale(view.summary, pace, now)
    line: list[Piece] = [("last event ", "dim"), (ago(view.summary.t, now), "bad" if stale else "")]
    if view.checkpoint is not None:
        t, step = view.checkpoint
        at = "" if step is None else f"step {step}, "
        line += [("  checkpoint ", "dim"), (f"{at}{ago(t, now)}", "")]
    else:
        line += [("  no checkpoint yet" if view.summary.status.live else "  no checkpoint", "dim")]
    if view.behind:
        line += [("  reading older events…", "info")]
    if view.lost_events:
        line += [(f"  {view.lost_events} events lost", "warn")]
    return line


def cost_of_stopping(view: RunView, now: float) -> str:
    """What a stop would throw away, in a sentence."""
    summary = view.summary
    if summary.step is None:
        return "No step has been made yet: nothing would be lost but the time to start again."
    of = f" of {summary.total}" if summary.total else ""
    steps, since = summary.step, summary.created
    saved = "This run has no checkpoint"
    if view.checkpoint is not None:
        since, step = view.checkpoint
        steps = max(0, summary.step - (step or 0))
        saved = "The last checkpoint has no step" if step is None else f"The last checkpoint is of step {step}"
    work = format_duration(None if since is None else max(0.0, now - since))
    lost = f"{steps} step{' is' if steps == 1 else 's are'} lost ({work} of work)"
    return f"It is at step {summary.step}{of}. {saved}: {lost}, unless the script saves when it is stopped."
