"""Values of a model that no checkpoint gives: the same in every layout, since each parameter has its own generator."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from collie.config import CollieConfig
from collie.interfaces import ConfigError
from collie.parallel import Fill


def initialiser(config: CollieConfig, dtype: torch.dtype) -> Fill:
    """Return what `collie.parallel.materialise` asks: elements [start, stop) of one of our parameters, in `dtype`.

    `initization_method` is about matrices; biases are 0 and norms' weights 1 in all of them. 'none' is the family's
    own: N(0, initializer_range²). Each parameter is drawn whole, in float32, from a generator seeded by the config's
    seed and the parameter's name, so that the values depend neither on the layout nor on the order.

    Raises:
        ConfigError: initization_method does not take initization_method_params.
    """
    fill_matrix = _matrix_method(config.initization_method, config.initization_method_params or {}, config)

    def draw(name: str, shape: torch.Size, start: int, stop: int, columns: tuple[int, int] | None = None) -> Tensor:
        whole = torch.zeros(shape, device="cpu")
        if len(shape) > 1:
            fill_matrix(whole, generator_for(config.seed, name))
        elif not name.endswith(".bias"):
            whole.fill_(1.0)
        if columns is not None:
            whole = whole[:, columns[0] : columns[1]]
        return whole.flatten()[start:stop].to(dtype)

    return draw


def _matrix_method(
    name: str, params: Mapping[str, Any], config: CollieConfig
) -> Callable[[Tensor, torch.Generator], Any]:
    if name == "none":
        spread = getattr(config.model_config, "initializer_range", 0.02)
        return lambda tensor, generator: nn.init.normal_(tensor, std=spread, generator=generator)
    draw = getattr(nn.init, f"{name}_")

    def method(tensor: Tensor, generator: torch.Generator) -> Any:
        return draw(tensor, **params, generator=generator)

    try:
        method(torch.empty(2, 2), torch.Generator())
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"initization_method_params={dict(params)!r} does not suit initization_method={name!r}: {error}."
        ) from error
    return method


def generator_for(seed: int, name: str) -> torch.Generator:
    """Return the generator of one parameter's random numbers: the same wherever it is drawn."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
