"""The command line of collie-eval."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from collie.evaluation._measures import MEASURES

_EPILOG = """\
`collie-eval lm-eval --help` shows how to run tasks of lm-evaluation-harness.
"""


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options in `words`; `command` is "lm-eval" or "data". Exits with 2 where they cannot be read."""
    if list(words[:1]) == ["lm-eval"]:
        options = _lm_eval().parse_args(words[1:])
        options.command = "lm-eval"
    else:
        options = _data().parse_args(words)
        options.command = "data"
    return options


def _data() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="collie-eval", description="Evaluate a model on the rows of a file, without a script.", epilog=_EPILOG
    )
    _model(parser)
    parser.add_argument("--data", required=True, metavar="FILE", help="rows: .json, .jsonl, .csv or .parquet")
    names = ", ".join(MEASURES)
    parser.add_argument("--metric", required=True, metavar="NAME,…", help=f"which metrics: {names}")
    parser.add_argument("--language", choices=("en", "zh"), help="how texts are split into words (default en)")
    parser.add_argument(
        "--style", choices=("harness", "helm"), help="how acc and classify judge candidates (default harness)"
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="of each generated text (default 128)")
    parser.add_argument("--max-rows", type=int, metavar="N", help="only the first N rows")
    parser.add_argument("--chat-template", metavar="FILE", help="Jinja; rows become turns of a conversation")
    parser.add_argument(
        "--samples", type=Path, metavar="FILE", help="write each prompt, output and target (JSON lines)"
    )
    return parser


def _lm_eval() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="collie-eval lm-eval",
        description="Run tasks of lm-evaluation-harness (pip install 'collie-eval[lm-eval]').",
    )
    _model(parser)
    parser.add_argument("--tasks", required=True, metavar="NAME,…", help="tasks or groups of the harness")
    parser.add_argument("--include-path", type=Path, metavar="DIR", help="a folder with tasks of your own (YAML)")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each question")
    parser.add_argument("--limit", type=float, metavar="N", help="only N rows of each task; below 1, their share")
    parser.add_argument("--apply-chat-template", action="store_true", help="send prompts through the chat template")
    parser.add_argument("--max-length", type=int, metavar="N", help="positions that a request may take")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything the harness reports (JSON)")
    return parser


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="PATH", help="a checkpoint's folder, or a name of the Hub")
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="rows a batch on each replica (default 8)"
    )
    parser.add_argument("--dtype", metavar="NAME", help="of the weights; by default the checkpoint's own")
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="tensor-parallel size")
    parser.add_argument("--pp", type=int, default=1, metavar="N", help="pipeline stages")
    parser.add_argument("--dp", type=int, metavar="N", help="replicas; by default as many as --nproc holds")
    parser.add_argument("--zero", type=int, choices=(0, 3), default=0, help="3 partitions the weights over replicas")
    parser.add_argument("--nproc", type=int, metavar="N", help="processes to start; by default tp × pp × dp")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
