"""The command collie-eval: what was asked, on how many ranks, and how it is shown."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from collie.evaluation._launch import is_rank, processes, start
from collie.evaluation._options import parse
from collie.evaluation._refusals import refuse
from collie.interfaces import CollieError

_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run collie-eval with `argv` (by default the process's own arguments); returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parse(words)
    try:
        nproc = processes(options)
        refuse(options)
        if nproc > 1 and not is_rank():
            return start(words, nproc)
        if options.command == "lm-eval":
            _lm_eval(options)
        else:
            _data(options)
    except KeyboardInterrupt:
        return 130
    except CollieError as error:
        rank = os.environ.get("RANK")
        print(f"collie-eval{f' (rank {rank})' if rank is not None else ''}: {error}", file=sys.stderr)
        return _USAGE
    finally:
        _leave()
    return 0


def _data(options: argparse.Namespace) -> None:
    from collie.evaluation._data import evaluate

    report = evaluate(options)
    if not _first():
        return
    if options.json:
        print(json.dumps({"model": options.model, "data": options.data, **vars(report)}, ensure_ascii=False, indent=2))
        return
    rows = [
        (name, f"{value:.6g}", report.signatures.get(name.partition("#")[0], ""))
        for name, value in report.results.items()
    ]
    _table(f"{options.model} on {options.data}", ("metric", "value", "signature"), rows)


def _lm_eval(options: argparse.Namespace) -> None:
    from collie.evaluation._load import load
    from collie.evaluation._tasks import needed, run_tasks

    needed()
    model, tokenizer = load(options)
    report = run_tasks(
        model,
        tokenizer,
        [name.strip() for name in options.tasks.split(",") if name.strip()],
        batch_size=options.batch_size,
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        include_path=options.include_path,
        apply_chat_template=options.apply_chat_template,
        max_length=options.max_length,
    )
    if not _first():
        return
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, ensure_ascii=False, indent=2), encoding="utf-8")
    if options.json:
        print(json.dumps({"model": options.model, "results": report["results"]}, ensure_ascii=False, indent=2))
        return
    _table(options.model, ("task", "metric", "value", "± stderr"), _task_rows(report["results"]))


def _task_rows(results: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each number of the harness, whose keys are `metric,filter` and `metric_stderr,filter`."""
    rows: list[tuple[str, ...]] = []
    for task, numbers in results.items():
        for key, value in numbers.items():
            metric, _, kind = key.partition(",")
            if not isinstance(value, float | int) or metric.endswith("_stderr") or not kind:
                continue
            error = numbers.get(f"{metric}_stderr,{kind}")
            shown = f"{error:.4g}" if isinstance(error, float) else ""
            rows.append((task, metric if kind == "none" else f"{metric} ({kind})", f"{value:.6g}", shown))
    return rows


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column == "value" else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _leave() -> None:
    """End the process group, if one was made: else its threads may complain when the process ends."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
