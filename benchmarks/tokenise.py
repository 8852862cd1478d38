"""How fast rows become tokens, against `datasets.map`, and how fast and lean they start again from the cache.

    python benchmarks/tokenise.py TOKENIZER ROWS.jsonl [--rows 60000] [--cached 1000000] [--processes 2] [--folder F]

ROWS.jsonl has {"question", "answer"} on each line, as GSM8K has; its rows are repeated as often as needed. Prints a
line of JSON for each of three questions. Both sides tokenise the same texts with the same tokenizer in as many
processes, in turn, from rows in memory to a file that can be mapped; `datasets.map` makes no labels.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

FORK = 4  # data workers whose memory is measured
READ = 20000  # rows that each of them reads


def texts(file: Path, count: int) -> list[dict[str, str]]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{"text": f"{row['question']}\n{row['answer']}"} for row in islice(cycle(rows), count)]


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@contextmanager
def cache_in(folder: Path | None = None) -> Iterator[Path]:
    """A folder, an empty one of its own by default, whose `cache` keeps what is tokenised."""
    with tempfile.TemporaryDirectory(prefix="collie-tokenise-") as temporary:
        folder = folder or Path(temporary)
        os.environ["COLLIE_CACHE"] = str(folder / "cache")
        yield folder


def collie(rows: list[dict[str, str]], tokenizer: Any, processes: int) -> tuple[float, int]:
    """Seconds and tokens."""
    from collie.data import CollieDatasetForTraining

    with cache_in():
        start = time.perf_counter()
        dataset = CollieDatasetForTraining(rows, tokenizer, add_special_tokens=False, processes=processes, cache=True)
        seconds = time.perf_counter() - start
        return seconds, sum(len(row["input_ids"]) for row in dataset)


def mapped(rows: list[dict[str, str]], tokenizer: Any, processes: int) -> tuple[float, int]:
    """Seconds and tokens of `datasets.map`, whose own reading of the rows into Arrow does not count."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    given = Dataset.from_list(rows)
    with cache_in() as folder:
        start = time.perf_counter()
        result = given.map(
            lambda batch: tokenizer(batch["text"], add_special_tokens=False),
            batched=True,
            num_proc=processes,
            remove_columns=["text"],
            cache_file_name=str(folder / "tokens.arrow"),
        )
        seconds = time.perf_counter() - start
        return seconds, sum(map(len, result["input_ids"]))


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    rows, tokenizer = texts(arguments.file, arguments.rows), load_tokenizer(arguments.tokenizer)
    runs: dict[str, list[tuple[float, int]]] = {"collie": [], "datasets": []}
    for _ in range(arguments.repeats):
        runs["collie"].append(collie(rows, tokenizer, arguments.processes))
        runs["datasets"].append(mapped(rows, tokenizer, arguments.processes))
    assert len({tokens for done in runs.values() for _, tokens in done}) == 1, "not the same tokens"
    seconds = {name: statistics.median(run[0] for run in done) for name, done in runs.items()}
    return {
        "what": "tokenising",
        "rows": len(rows),
        "tokens": runs["collie"][0][1],
        "processes": arguments.processes,
        "repeats": arguments.repeats,
        **{f"{name}_s": round(value, 2) for name, value in seconds.items()},
        "ratio": round(seconds["datasets"] / seconds["collie"], 2),
    }


def write_rows(file: Path, count: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in texts(file, count))


def start(arguments: argparse.Namespace) -> dict[str, Any]:
    """In a fresh process, whose imports do not count: the dataset of a file that was tokenised before, and its rows."""
    from collie.data import CollieDatasetForTraining

    tokenizer = load_tokenizer(arguments.tokenizer)
    begun = time.perf_counter()
    dataset = CollieDatasetForTraining(arguments.start, tokenizer, processes=arguments.processes)
    built = time.perf_counter() - begun
    first = dataset[len(dataset) // 2]
    return {"rows": len(dataset), "seconds": built, "first": len(first["input_ids"]), "memory": memory(dataset)}


def memory(dataset: Any) -> float:
    """MB of its own that a forked data worker has after reading rows, beyond what one has that reads none."""
    reading, idle = (statistics.mean(_forked(dataset, rows) for _ in range(FORK)) for rows in (READ, 0))
    return (reading - idle) / 1e6


def _forked(dataset: Any, rows: int) -> float:
    receiving, sending = os.pipe()
    if (child := os.fork()) == 0:
        for index in range(rows):
            dataset[index * 7919 % len(dataset)]
        own = next(
            int(line.split()[1]) * 1024
            for line in Path("/proc/self/smaps_rollup").read_text().splitlines()
            if line.startswith("Private_Dirty:")
        )
        os.write(sending, str(own).encode())
        os._exit(0)
    os.close(sending)
    with open(receiving) as pipe:
        own = int(pipe.read())
    os.waitpid(child, 0)
    return own


def cached(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with cache_in(arguments.folder) as folder:
        rows = folder / f"{arguments.cached}-rows.jsonl"
        if not rows.is_file():
            write_rows(arguments.file, arguments.cached, rows)
        command = [sys.executable, __file__, str(arguments.tokenizer), str(arguments.file)]
        command += ["--start", str(rows), "--processes", str(arguments.processes)]

        def once() -> dict[str, Any]:
            return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

        first = once()  # fills the cache
        read, known = [], []
        for _ in range(arguments.repeats):
            shutil.rmtree(folder / "cache" / "datasets" / "files", ignore_errors=True)  # the digest that is remembered
            read.append(once())
            known.append(once())
        sizes = {"file_GB": rows, "cache_GB": max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)}
        yield {
            "what": "start of a cached set",
            "rows": first["rows"],
            **{name: round(path.stat().st_size / 1e9, 3) for name, path in sizes.items()},
            "start_s": round(statistics.median(run["seconds"] for run in read), 3),
            "file_known_s": round(statistics.median(run["seconds"] for run in known), 3),
            "limit_s": 2.0,
        }
        yield {
            "what": "memory a data worker adds",
            "rows_read": READ,
            "MB": round(max(run["memory"] for run in read + known), 1),
            "limit_MB": 100,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="a folder with a fast tokenizer")
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=60_000, help="rows that are tokenised against datasets.map")
    parser.add_argument("--cached", type=int, default=1_000_000, help="rows of the cached set; 0 leaves it out")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the cached set here; a temporary folder by default")
    parser.add_argument("--start", type=Path, help="only build the dataset of this file")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as many threads on both sides
    if arguments.start:
        print(json.dumps(start(arguments)))
        return
    if arguments.rows:
        print(json.dumps(speed(arguments)), flush=True)
    if arguments.cached:
        for line in cached(arguments):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
