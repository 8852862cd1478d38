"""Stands in for torchrun where torchrun is not under test: same flags, log layout, report and exit codes."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser()
    for flag in ("nnodes", "nproc-per-node", "rdzv-backend", "rdzv-endpoint", "rdzv-id", "max-restarts", "redirects"):
        parser.add_argument(f"--{flag}")
    parser.add_argument("--log-dir", type=Path)
    parser.add_argument("script")
    parser.add_argument("args", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    assert options.log_dir.is_absolute() and options.redirects == "3"
    logs = Path(tempfile.mkdtemp(prefix=f"{options.rdzv_id}_", dir=options.log_dir)) / "attempt_0"
    workers = [_start(rank, options, logs) for rank in range(int(options.nproc_per_node))]
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    while True:
        codes = [worker.poll() for worker in workers]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None and not asked:
            _end(workers)
            print("Root Cause (first observed failure):\n[0]:")
            print(f"  rank      : {failed} (local_rank: {failed})\n  exitcode  : {codes[failed]} (pid: 1)")
            return 1
        if None not in codes:
            return 1 if asked else 0
        if asked:
            _end(workers)
        time.sleep(0.02)


def _start(rank: int, options: argparse.Namespace, logs: Path) -> "subprocess.Popen[bytes]":
    folder = logs / str(rank)
    folder.mkdir(parents=True)
    with (folder / "stdout.log").open("wb") as out, (folder / "stderr.log").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, "-u", options.script, *options.args],
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": options.nproc_per_node},
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


def _end(workers: "list[subprocess.Popen[bytes]]") -> None:
    """TERM, and no KILL of its own: that a worker ignores TERM is for the supervisor to deal with."""
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
    for worker in workers:
        worker.wait()


if __name__ == "__main__":
    sys.exit(main())
