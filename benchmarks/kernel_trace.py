"""Where the time of one training step went, read from the trace that torch.profiler writes of it."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
KINDS = {  # the first that matches a name: kernels of CUDA, and torch's own operators where a CPU computes
    "attention": r"flash|fmha|sdpa|attention",
    "gemm": r"gemm|nvjet|cutlass|cublas|wgmma|splitk|aten::(mm|bmm|addmm|matmul|linear)$",
    "copy": r"memcpy|memset|copy|aten::(clone|contiguous|_to_copy|fill_|zero_)$",
    "indexing": r"index|gather|scatter|embedding|aten::(nonzero|masked_fill_?)$",
    "reduction": r"reduce|softmax|norm|aten::(sum|mean|logsumexp|amax|max|all|any)$",
    "elementwise": r"elementwise|vectorized|foreach|multi_tensor|aten::[a-z]*(add|sub|mul|div|exp|silu|pow|rsqrt|neg)",
}


@dataclass(frozen=True)
class Span:
    """One stretch of work: `start` and `end` in microseconds of the trace's clock."""

    name: str
    start: float
    end: float


def summarise(trace: Path, top: int = 12) -> dict[str, Any]:
    """Return the shares of the last profiled step by kind of kernel, and the kernels that took longest.

    Args:
        trace: a file of `torch.profiler.profile.export_chrome_trace`, of a profiler whose `step` was called.
        top: how many kernels are listed.

    Returns:
        step_ms; `share` of the step's time by kind, where idle is the time in which nothing ran; kernels, how many
        ran; top, each with its name, kind, calls, ms and share. Kernels that run beside each other count in full, so
        that shares may then add up to more than 1. Of a CPU's operators their parts between others count as calls.

    Raises:
        ValueError: the trace has no step.
    """
    events = [e for e in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"] if e.get("ph") == "X"]
    marks = [e for e in events if e.get("cat") == "user_annotation"]  # on a GPU's own line they begin with a kernel
    steps = [_span(e) for e in marks if e["name"].startswith("ProfilerStep#")]
    if not steps:
        raise ValueError(f"{trace} has no step: call profile.step() after each.")
    step = max(steps, key=lambda span: span.start)
    spans = [span for span in work(events) if step.start <= span.start < step.end]
    length = max([step.end, *(span.end for span in spans)]) - step.start
    by_kind: dict[str, float] = dict.fromkeys([*KINDS, "other"], 0.0)
    by_name: dict[str, list[float]] = defaultdict(list)
    for span in spans:
        by_kind[kind_of(span.name)] += span.end - span.start
        by_name[span.name].append(span.end - span.start)
    by_kind["idle"] = length - covered(spans)
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:top]
    return {
        "step_ms": length / 1e3,
        "kernels": len(spans),
        "share": {kind: spent / length for kind, spent in by_kind.items()},
        "top": [
            {
                "name": name[:120],
                "kind": kind_of(name),
                "calls": len(times),
                "ms": sum(times) / 1e3,
                "share": sum(times) / length,
            }
            for name, times in longest
        ],
    }


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def work(events: Iterable[dict[str, Any]]) -> list[Span]:
    """What the device did; of a trace without a device, what operators did outside those that they called."""
    listed = list(events)
    kernels = [_span(event) for event in listed if event.get("cat") in ON_DEVICE]
    if kernels:
        return kernels
    threads: dict[Any, list[Span]] = defaultdict(list)
    for event in listed:
        if event.get("cat") == "cpu_op":
            threads[event["tid"]].append(_span(event))
    return [part for spans in threads.values() for part in alone(spans)]


def alone(nested: Iterable[Span]) -> Iterator[Span]:
    """Cut spans of one thread, of which some lie within others, into parts that belong to the innermost."""
    open_spans: list[Span] = []
    at = 0.0
    for span in [*sorted(nested, key=lambda span: (span.start, -span.end)), Span("", float("inf"), float("inf"))]:
        while open_spans and open_spans[-1].end <= span.start:
            inner = open_spans.pop()
            if inner.end > at:
                yield Span(inner.name, at, inner.end)
            at = max(at, inner.end)
        if open_spans and span.start > at:
            yield Span(open_spans[-1].name, at, span.start)
        at = span.start
        open_spans.append(span)


def covered(spans: Iterable[Span]) -> float:
    """The time in which at least one of them ran."""
    total, until = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        total += max(0.0, span.end - max(span.start, until))
        until = max(until, span.end)
    return total


def _span(event: dict[str, Any]) -> Span:
    return Span(str(event["name"]), float(event["ts"]), float(event["ts"]) + float(event["dur"]))
