"""Which attention kernel does a call: a table of what each can do, the fastest first.

The order is that of the rates, forward and backward, which benchmarks/attention.py prints on an H100.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from collie.interfaces import ConfigError, nearest
from collie.module._kernels import FlashKernel, TorchKernel
from collie.module._mask import Mask
from collie.module._rehearsal import Rehearsal

# B batch, N query heads, K key/value heads, H head dim, Q queries, T keys

_logger = logging.getLogger("collie.module")
_HALF = (torch.float16, torch.bfloat16)
_ANY = range(1, 2**31)


@dataclass(frozen=True)
class Call:
    """What of a call decides on its kernel.

    device: a type of device; major: of a GPU's compute capability, else 0.
    grad: whether gradients are recorded. one_query: whether Q is 1, as in generation.
    needs: see `Mask.needs`.
    """

    device: str
    major: int
    dtype: torch.dtype
    head_dim: int
    dropout: bool
    grad: bool
    one_query: bool
    needs: frozenset[str]

    @classmethod
    def of(cls, q_BNQH: Tensor, mask: Mask, dropout: float) -> "Call":
        major = _major(q_BNQH.device) if q_BNQH.is_cuda else 0
        return cls(
            device=q_BNQH.device.type,
            major=major,
            dtype=q_BNQH.dtype,
            head_dim=q_BNQH.shape[-1],
            dropout=dropout > 0,
            grad=torch.is_grad_enabled(),
            one_query=q_BNQH.shape[2] == 1,
            needs=mask.needs,
        )


@dataclass(frozen=True)
class Backend:
    """A kernel, what it can do, and what it is good for.

    name: what `attention_backend` takes.
    run: returns [B, N, Q, H] for (queries, keys, values, mask, dropout), or None where torch does not take the tensors.
    devices, majors, dtypes, head_dims: where it runs, and on what.
    knows: which of a mask's needs its own arguments say.
    dense: whether it takes a dense mask for the others.
    dropout: whether it drops attention weights.
    training_only, one_query: whether it is not worth its while without gradients; whether it is for one query.
    absent: why it is not there at all, or None.
    rehearsal: of a kernel that is compiled when it is first called.
    """

    name: str
    run: Callable[[Tensor, Tensor, Tensor, Mask, float], Tensor | None]
    devices: Collection[str] | None = ("cuda",)
    majors: Collection[int] = _ANY
    dtypes: Collection[torch.dtype] | None = _HALF
    head_dims: Collection[int] = _ANY
    knows: frozenset[str] = frozenset({"causal"})
    dense: bool = False
    dropout: bool = True
    training_only: bool = False
    one_query: bool = True
    absent: Callable[[], str | None] = lambda: None
    rehearsal: Rehearsal | None = None

    def runs_on(self, device: str) -> bool:
        return self.devices is None or device in self.devices

    def refusal(self, call: Call) -> str | None:
        """Why it cannot do a call, or None."""
        if not self.runs_on(call.device):
            return f"it does not run on {call.device}"
        if call.device == "cuda" and call.major not in self.majors:
            return f"it does not run on GPUs of compute capability {call.major}.x"
        if self.dtypes is not None and call.dtype not in self.dtypes:
            return f"it does not take {call.dtype}"
        if call.head_dim not in self.head_dims:
            return f"it does not take heads of {call.head_dim} dimensions"
        if call.dropout and not self.dropout:
            return "it has no dropout"
        unknown = call.needs - self.knows
        if unknown and not self.dense:
            return f"it has no mask for {', '.join(sorted(unknown))}"
        return self.absent()

    def suits(self, call: Call) -> bool:
        """Whether it is a good choice for a call that it can do."""
        return (call.grad or not self.training_only) and (self.one_query or not call.one_query)

    def compiles(self, call: Call, q_BNQH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, mask: Mask, dropout: float) -> bool:
        """Whether nothing went wrong in making the kernel, which may be made for this very call."""

        def run(q_BNQH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor) -> Tensor | None:
            return self.run(q_BNQH, k_BKTH, v_BKTH, mask, dropout)

        kind = call, q_BNQH.shape[1] // k_BKTH.shape[1]  # how many query heads a key/value head serves is compiled in
        return self.rehearsal is None or self.rehearsal.passes(kind, run, (q_BNQH, k_BKTH, v_BKTH), call.grad)


# a pre-release, whose arguments change from one to the next: the one that benchmarks/attention.py has been run with
_FLASH_ATTN_4 = FlashKernel("flash-attn-4", "flash_attn.cute", "==4.0.0b36", "collie-models[flash]", dropout=False)
_FLASH_ATTN_2 = FlashKernel("flash-attn", "flash_attn", ">=2.5", "flash-attn>=2.5", dropout=True)
_FLASH_MASKS = frozenset({"causal", "offset", "window", "padding", "packed"})

BACKENDS: tuple[Backend, ...] = (
    Backend(
        "flash_attn_4",
        _FLASH_ATTN_4,
        majors=(9,),  # what benchmarks/attention.py has been run on, and the head dims that it runs
        head_dims=(64, 128),
        knows=_FLASH_MASKS,
        dropout=False,
        one_query=False,  # it does not split the keys among the GPU's processors, and one query is little else to split
        absent=_FLASH_ATTN_4.absent,
        rehearsal=Rehearsal("flash-attn-4"),
    ),
    Backend(
        "cudnn",
        TorchKernel(SDPBackend.CUDNN_ATTENTION),
        majors=range(8, 99),
        head_dims=range(8, 129, 8),
        dropout=False,
        training_only=True,  # it plans each new shape for some 60 ms, and in generation each new token is one
    ),
    Backend(
        "flash_attn_2",
        _FLASH_ATTN_2,
        majors=range(8, 99),
        head_dims=range(8, 257),
        knows=_FLASH_MASKS,
        absent=_FLASH_ATTN_2.absent,
    ),
    Backend("flash", TorchKernel(SDPBackend.FLASH_ATTENTION), majors=range(8, 99), head_dims=range(1, 257)),
    Backend(
        "flash",
        TorchKernel(SDPBackend.FLASH_ATTENTION),
        devices=("cpu",),
        dtypes=(*_HALF, torch.float32, torch.float64),
        dense=True,
        dropout=False,
    ),
    Backend(
        "efficient",
        TorchKernel(SDPBackend.EFFICIENT_ATTENTION, groups=False),
        dtypes=(*_HALF, torch.float32),
        dense=True,
    ),
    Backend("math", TorchKernel(SDPBackend.MATH), devices=None, dtypes=None, dense=True),
)

_forced: list[str] = []  # by the innermost `attention_backend` last


@contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Hold attention to one backend, as torch's `sdpa_kernel` does: for tests, and to find out what is faster.

    It says nothing to layers with use_flash=False. A backward pass that computes layers again (checkpointing) belongs
    inside, too. Calls that the backend cannot do raise ConfigError.

    Args:
        name: flash_attn_4, flash_attn_2, or one of torch's: cudnn, flash, efficient, math.

    Raises:
        ConfigError: there is no such backend.
    """
    names = list(dict.fromkeys(backend.name for backend in BACKENDS))
    if name not in names:
        near = nearest(name, names)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ConfigError(f"There is no attention backend {name!r}; there are {', '.join(names)}.{hint}")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def candidates(call: Call, backends: Sequence[Backend], forced: str | None = None) -> list[Backend]:
    """Return the backends that can do a call, the best first; of those named `forced`, if that is given.

    Raises:
        ConfigError: none can; with the reason.
    """
    named = [backend for backend in backends if forced in (None, backend.name)]
    able = [backend for backend in named if backend.refusal(call) is None]
    if not able:  # a name may stand for a kernel of each device
        nearest_one = next((backend for backend in named if backend.runs_on(call.device)), named[0])
        raise ConfigError(f"attention_backend({forced!r}) cannot do this call: {nearest_one.refusal(call)}.")
    return [backend for backend in able if forced is not None or backend.suits(call)]


@lru_cache(maxsize=1024)
def _candidates(call: Call, forced: str | None) -> list[Backend]:
    return candidates(call, BACKENDS, forced)


def fused(q_BNQH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, mask: Mask, dropout: float) -> Tensor:
    """Attention by the first backend that does the call: [B, N, Q, H].

    Raises:
        ConfigError: `attention_backend` holds it to one that does not.
    """
    call, forced = Call.of(q_BNQH, mask, dropout), _forced[-1] if _forced else None
    able = _candidates(call, forced)
    for backend in able:
        if not backend.compiles(call, q_BNQH, k_BKTH, v_BKTH, mask, dropout):
            continue
        out = backend.run(q_BNQH, k_BKTH, v_BKTH, mask, dropout)
        if out is not None:
            _say(backend.name, call)
            return out
    failures = [backend.rehearsal.failure for backend in able if backend.rehearsal and backend.rehearsal.failure]
    reason = f"it failed ({failures[0]})" if failures else "torch does not take these tensors for it"
    raise ConfigError(f"attention_backend({forced!r}) cannot do this call: {reason}.")


@cache
def _say(name: str, call: Call) -> None:
    """Log the choice, once for each kind of call."""
    kind = [str(call.dtype).removeprefix("torch."), f"head dim {call.head_dim}", *sorted(call.needs)]
    kind += ["dropout"] * call.dropout + ["no gradients"] * (not call.grad)
    _logger.debug("attention on %s by %s: %s", call.device, name, ", ".join(kind))


@cache
def _major(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]
