"""How much memory this rank uses."""

import psutil
import torch


def memory_in_use(device: torch.device) -> int:
    """Peak bytes that torch allocated on a GPU; the process's resident bytes on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
