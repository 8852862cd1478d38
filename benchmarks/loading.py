"""How long a 1B-parameter checkpoint takes to load on one CPU rank, and how much memory: against safetensors alone.

    python benchmarks/loading.py [--repeats 5] [--folder FOLDER]

Writes a LLaMA of 1.24 billion parameters in bfloat16 (2.5 GB; the sizes of Llama 3.2 1B) and reads it in processes of
their own, in turn, with the file in the page cache. Prints one line of JSON. `load_file` by itself only maps a file:
here its tensors are copied out of the mapping, or read by its other backend, and the faster of the two counts.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def model_config() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, max_position_embeddings=131072, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip


def write(folder: Path) -> None:
    """Write the checkpoint: random bits would take longer to make, and are not read any slower."""
    import torch
    from safetensors.torch import save_file

    from collie.config import CollieConfig
    from collie.models import LlamaForCausalLM

    config = CollieConfig(model_config=model_config())
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    config.save_pretrained(folder)
    shapes = {model.names.to_checkpoint(name)[0]: p.shape for name, p in model.named_parameters()}
    tensors = {name: torch.full(shape, 0.01, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def copied(folder: Path) -> Any:
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}


def read(folder: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors", backend="pread")


def collie(folder: Path) -> Any:
    from collie.models import CollieModelForCausalLM

    return CollieModelForCausalLM.from_pretrained(folder)


WAYS: dict[str, Callable[[Path], Any]] = {"copied": copied, "read": read, "collie": collie}


def measure(way: str, folder: Path) -> dict[str, float]:
    """Load once in this process, whose imports do not count; return seconds and the peak of anonymous memory."""
    import safetensors.torch  # noqa: F401

    import collie.models  # noqa: F401
    from collie.testing import PeakMemory

    with PeakMemory() as peak:
        start = time.perf_counter()
        kept = WAYS[way](folder)
        seconds = time.perf_counter() - start
    del kept
    return {"seconds": seconds, "peak": peak.above}


def apart(*arguments: str) -> str:
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def compare(folder: Path, repeats: int) -> dict[str, float]:
    if not (folder / "model.safetensors").is_file():
        apart("--write", "--folder", str(folder))
    file = folder / "model.safetensors"
    with file.open("rb") as opened:
        while opened.read(2**24):  # into the page cache
            pass
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, done in runs.items():
            done.append(json.loads(apart("--measure", way, "--folder", str(folder))))
    seconds = {way: statistics.median(run["seconds"] for run in done) for way, done in runs.items()}
    peak = max(run["peak"] for run in runs["collie"])
    return {
        "GB": round(file.stat().st_size / 1e9, 3),
        "repeats": repeats,
        **{f"{way}_s": round(value, 3) for way, value in seconds.items()},
        "ratio": round(seconds["collie"] / min(seconds["copied"], seconds["read"]), 3),
        "peak_GB": round(peak / 1e9, 3),
        "peak_to_shard": round(peak / file.stat().st_size, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or will be; a temporary one by default")
    parser.add_argument("--write", action="store_true", help="only write the checkpoint")
    parser.add_argument("--measure", choices=WAYS, help="only load it once, in this way")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="collie-loading-") as temporary:
        folder = arguments.folder or Path(temporary)
        if arguments.write:
            write(folder)
        elif arguments.measure:
            print(json.dumps(measure(arguments.measure, folder)))
        else:
            print(json.dumps(compare(folder, arguments.repeats)))


if __name__ == "__main__":
    main()
