"""Starting the ranks of a command: torchrun as a child process, with the same words."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from collie.interfaces import ConfigError


def processes(options: argparse.Namespace) -> int:
    """How many processes the options ask for.

    Raises:
        ConfigError: --nproc does not hold whole replicas.
    """
    replica = options.tp * options.pp
    if min(options.tp, options.pp, options.dp or 1) < 1:
        raise ConfigError(f"--tp {options.tp} --pp {options.pp} --dp {options.dp}: each is 1 or more.")
    if options.nproc is None:
        return replica * (options.dp or 1)
    if (
        options.nproc < 1
        or options.nproc % replica
        or options.nproc != replica * (options.dp or options.nproc // replica)
    ):
        wanted = f"tp × pp × dp = {options.tp} × {options.pp} × {options.dp or '?'}"
        raise ConfigError(f"--nproc {options.nproc} does not fit {wanted}: leave --nproc or --dp out.")
    return int(options.nproc)


def is_rank() -> bool:
    """Whether this process was started by torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def start(words: Sequence[str], nproc: int) -> int:
    """Run `collie-eval` with `words` on `nproc` ranks of this machine, and return torchrun's exit status."""
    command = [
        # -P: a file of the working directory must not stand in for a module of torchrun's
        *(sys.executable, "-P", "-m", "torch.distributed.run"),
        *("--nnodes=1", f"--nproc-per-node={nproc}", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
        # --: torchrun would take what follows the module for options of its own where it can
        *("-m", "--", "collie.evaluation", *words),
    ]
    with subprocess.Popen(command) as torchrun:
        try:
            return torchrun.wait()
        except KeyboardInterrupt:  # the terminal has sent it to torchrun, too, which ends its ranks
            torchrun.wait()
            return 130
