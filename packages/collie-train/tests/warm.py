"""What each forked rank would otherwise import at its first step under ZeRO, in 4 s: imported once, before any fork."""

import importlib
import os


def warm():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # forked ranks have no GPU
    for module in ("deepspeed.runtime.zero.stage_1_and_2", "torch._inductor.compile_fx"):
        importlib.import_module(module)
