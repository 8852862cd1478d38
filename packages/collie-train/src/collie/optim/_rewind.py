"""Passing twice through the same dropout."""

from collections.abc import Callable

import torch


def rewind_random_numbers(device: torch.device) -> Callable[[], None]:
    """Return a function that turns torch's generators back to where they stand now."""
    cpu = torch.get_rng_state()
    gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def rewind() -> None:
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu, device)

    return rewind
