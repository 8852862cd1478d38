"""JSON that every parser reads: numbers that are not finite become the strings that event files use."""

import json
import math
import re
from typing import Any

_UNSAFE = re.compile(r"[\x7f-\x9f\ud800-\udfff]")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON text; what a terminal would act on is escaped."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
