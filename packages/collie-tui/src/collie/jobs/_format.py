"""Numbers as people read them, each in a few characters; "—" for what is not known."""

import math

NOTHING = "—"


def format_duration(seconds: float | None) -> str:
    """At most two units: 0.4s, 12s, 3m05s, 2h11m, 4d03h."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 0.9995:
        return f"{max(0.0, seconds) * 1000:.0f}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def format_age(seconds: float | None) -> str:
    """Whole units, for something that is counted up on a screen: now, 12s, 3m, 2h, 4d."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    whole = int(max(0.0, seconds))
    if whole < 1:
        return "now"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if whole >= size:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def format_ago(seconds: float | None) -> str:
    """An age in a sentence: "now", "12s ago", or "—"."""
    text = format_age(seconds)
    return text if text in (NOTHING, "now") else f"{text} ago"


def format_progress(step: int | None, total: int | None) -> str:
    """1240/4800, or what of it is known."""
    if step is None:
        return NOTHING if total is None else f"0/{total}"
    return f"{step}/{total}" if total else f"{step}"


def format_count(value: float | None) -> str:
    """Three digits and a letter: 812, 58.2k, 1.25M."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{_three(value / size)}{letter}"
    return _three(value) if value % 1 else f"{value:.0f}"


def _three(value: float) -> str:
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f}"


def format_bytes(value: float | None) -> str:
    """Binary units: 512 MiB, 61.2 GiB."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(value) >= 1024**power:
            return f"{_three(value / 1024**power)} {unit}"
    return f"{value:.0f} B"


def format_number(value: float | None) -> str:
    """A loss, a metric: four significant digits, nan and inf as such, powers of ten where needed."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+")
    whole_digits = math.floor(math.log10(abs(value))) + 1
    return f"{value:.{4 if whole_digits < 1 else max(0, 4 - whole_digits)}f}"
