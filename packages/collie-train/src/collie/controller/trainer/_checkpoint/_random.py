"""The random number generators of a rank, as tensors: torch's (CPU and this rank's GPU), numpy's and Python's."""

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_MERSENNE_TWISTER = "MT19937"


def take_random_numbers(device: torch.device) -> dict[str, Tensor]:
    """Return the states of all generators that a training step may draw from."""
    _, words, has_gauss, gauss = _numpy_state()
    version, numbers, next_gauss = random.getstate()
    states = {
        "random/torch": torch.get_rng_state(),
        "random/numpy": torch.from_numpy(words),
        "random/numpy_gauss": torch.tensor([has_gauss, gauss], dtype=torch.float64),
        "random/python": torch.tensor([version, *numbers], dtype=torch.int64),
        "random/python_gauss": torch.tensor([] if next_gauss is None else [next_gauss], dtype=torch.float64),
    }
    if device.type == "cuda":
        states["random/cuda"] = torch.cuda.get_rng_state(device)
    return states


def put_random_numbers(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Turn the generators back to where they stood. One that the checkpoint has no state of is left alone."""
    torch.set_rng_state(states["random/torch"])
    if device.type == "cuda" and "random/cuda" in states:
        torch.cuda.set_rng_state(states["random/cuda"], device)
    words = states["random/numpy"].numpy()
    has_gauss, gauss = states["random/numpy_gauss"].tolist()
    np.random.set_state((_MERSENNE_TWISTER, words[:-1].astype(np.uint32), int(words[-1]), int(has_gauss), gauss))
    version, *numbers = states["random/python"].tolist()
    next_gauss = states["random/python_gauss"].tolist()
    random.setstate((version, tuple(numbers), next_gauss[0] if next_gauss else None))


def _numpy_state() -> tuple[str, "np.ndarray", int, float]:
    """numpy's global generator: its kind, its words with the position behind them, and a number drawn ahead."""
    state = np.random.get_state(legacy=False)
    assert isinstance(state, dict)
    inner = state["state"]
    words = np.append(inner["key"].astype(np.int64), inner["pos"])
    return state["bit_generator"], words, state["has_gauss"], state["gauss"]
