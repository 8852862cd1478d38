"""The tutorial's example, whole, on a tiny MOSS-moon: made, trained under `collie-tui run`, and checked.

    python demo/moss.py FOLDER [--nproc 2]

Ends with status 1 unless the model has learned the sentence: perplexity under 1.1, and the sentence itself generated
from the input alone.
"""

import argparse
import pathlib

from supervised import events_of_rank_0, run_job
from tiny_moss import make_checkpoint

from collie.events import Eval, RunFolder, Sample, Step

INPUT, OUTPUT = "Collie is a python package for ", "finetuning large language models."
SCRIPT = "examples/finetune_moss_for_training.py"


def report(run: RunFolder) -> list[str]:
    """Print what the run's events say; return what is wrong, nothing where all is well."""
    events = [record.event for record in events_of_rank_0(run)]
    losses = [event.loss for event in events if isinstance(event, Step) and event.loss is not None]
    perplexities = [event.results["ppl"] for event in events if isinstance(event, Eval) and "ppl" in event.results]
    samples = [event for event in events if isinstance(event, Sample)]
    if not (losses and perplexities and samples):
        return [f"the run has {len(losses)} losses, {len(perplexities)} perplexities, {len(samples)} generated texts"]
    print(f"first loss: {losses[0]:.4f}")
    print(f"last loss: {losses[-1]:.4f} (of {len(losses)} steps)")
    print(f"perplexity: {perplexities[-1]:.4f}")
    print(f"decoded: {samples[-1].output}")
    wrong = [] if perplexities[-1] < 1.1 else [f"the perplexity is {perplexities[-1]:.4f}, not under 1.1"]
    for sample in samples:
        if sample.prompt.strip() != INPUT.strip() or sample.output != OUTPUT:
            wrong.append(f"{sample.prompt!r} was continued with {sample.output!r}, not with {OUTPUT!r}")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--nproc", type=int, default=2)
    arguments = parser.parse_args()
    checkpoint = make_checkpoint(arguments.folder.absolute())
    print(f"a tiny MOSS-moon is in {checkpoint}: {', '.join(sorted(path.name for path in checkpoint.iterdir()))}")
    if wrong := report(run_job(SCRIPT, [str(checkpoint)], arguments.nproc)):
        raise SystemExit("\n".join(wrong))
