"""Every attention kernel that this machine has against the plain formula in float32, then how fast each is.

    python benchmarks/attention.py [--device cuda]

Prints one JSON line for each case and kernel that the dispatch may choose for it: the largest errors of output and
gradients, relative to the largest number of each, and the limits: twice the error of the same formula in bfloat16,
step by step, and two units in bfloat16's last place. `chosen` marks the kernel that the dispatch takes. Then a line
for each kernel's rate in TFLOP/s (causal attention counted at half, the backward pass at 2.5 forward passes), of rows
apart and of packs of eight rows, and one for each package that is not there. Ends with status 1 if an error is over its
limit.

flash-attn-4 compiles each kind of call for some seconds, so its cases run beside each other in processes of their own.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from collie.module import Mask, Packed, attention, attention_backend
from collie.module._backends import BACKENDS, Call, candidates

# B batch, N query heads, K key/value heads, H head dim, Q queries, T keys

COMPILES = "flash_attn_4"
ALIKE = ("causal", "right padding", "200 queries after 312 keys")  # one kind to it, and that of the rates
FLOOR = 2**-7
Attend = Callable[[Tensor, Tensor, Tensor, Mask], Tensor]


@dataclass(frozen=True)
class Case:
    """One kind of call, of two rows and eight query heads."""

    kv_heads: int = 8
    head_dim: int = 128
    queries: int = 512
    past: int = 0
    padding: tuple[tuple[int, int], ...] | None = None  # of each row, before and after its tokens
    window: int | None = None
    prefix: tuple[int, ...] | None = None
    packs: tuple[tuple[int, ...], ...] | None = None  # the lengths of the rows in each
    gradients: bool = True

    def mask(self, device: torch.device) -> Mask:
        keys = self.past + self.queries
        keep_BT = None
        if self.padding is not None:
            place_T = torch.arange(keys, device=device)
            rows = [(place_T >= before) & (place_T < keys - after) for before, after in self.padding]
            keep_BT = torch.stack(rows)
        prefix_B = torch.tensor(self.prefix, device=device) if self.prefix is not None else None
        packed = None
        if self.packs is not None:
            starts = torch.tensor([0, *(length for rows in self.packs for length in rows)]).cumsum(0)
            packed = Packed.build(starts.to(device), len(self.packs), self.queries)
        mask = Mask.build(keep_BT, self.queries, self.past, device, prefix_B=prefix_B, packed=packed)
        return mask if self.window is None else mask.within(self.window, keys)


CASES = {
    "causal": Case(),
    "causal, head dim 64, odd length": Case(head_dim=64, queries=317),
    "right padding": Case(padding=((0, 100), (0, 0))),
    "left padding": Case(padding=((100, 0), (3, 0))),
    "window": Case(window=100),
    "groups of 4": Case(kv_heads=2),
    "groups of 4, window, padding on both sides, head dim 64": Case(2, 64, padding=((77, 0), (5, 9)), window=100),
    "prefix": Case(prefix=(200, 31)),
    "prefix, left padding, odd length": Case(queries=317, padding=((100, 0), (0, 0)), prefix=(200, 31)),
    "packed": Case(packs=((200, 3, 309), (512,))),
    "packed, groups of 4, window, head dim 64": Case(2, 64, packs=((130, 382), (100, 412)), window=100),
    "packed, padding in rows, odd length": Case(queries=317, padding=((5, 0), (0, 9)), packs=((100, 217), (17, 300))),
    "200 queries after 312 keys": Case(queries=200, past=312),
    "one query after 511 keys": Case(kv_heads=2, queries=1, past=511, gradients=False),
    "one query after 511 keys, left padding": Case(
        kv_heads=2, queries=1, past=511, padding=((100, 0), (0, 0)), gradients=False
    ),
}


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    return attention(q, k, v, mask, use_flash=False)


def rounded(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """The formula with each step's numbers in the inputs' dtype: how exact that dtype lets one be."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask.visible_B1QT, float("-inf"))
    return scores.softmax(-1) @ v


def by(name: str) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        with attention_backend(name):
            return attention(q, k, v, mask)

    return attend


def inputs(batch: int, heads: int, case: Case, device: torch.device) -> list[Tensor]:
    """Queries, keys and values in the layout that a model's projections give them: [B, S, heads, H], transposed."""
    generator = torch.Generator(device).manual_seed(0)
    sizes = (case.queries, heads), *[(case.past + case.queries, case.kv_heads)] * 2
    shapes = [(batch, *size, case.head_dim) for size in sizes]
    made = [torch.randn(s, generator=generator, device=device, dtype=torch.bfloat16).transpose(1, 2) for s in shapes]
    return [x.requires_grad_(case.gradients) for x in made]


def results(attend: Attend, tensors: list[Tensor], case: Case) -> dict[str, Tensor]:
    """Output where queries are tokens, and the gradients of its product with fixed numbers."""
    q, k, v = (x.detach().requires_grad_(case.gradients) for x in tensors)
    mask = case.mask(q.device)
    with torch.set_grad_enabled(case.gradients):
        out_BQNH = attend(q, k, v, mask).transpose(1, 2)
        if mask.keep_BT is not None:
            out_BQNH = out_BQNH * mask.keep_BT[:, -case.queries :, None, None]
    found = {"out": out_BQNH.detach()}
    if case.gradients:
        generator = torch.Generator(q.device).manual_seed(1)
        weight = torch.randn(out_BQNH.shape, generator=generator, device=q.device, dtype=torch.bfloat16)
        gradients = torch.autograd.grad(out_BQNH, (q, k, v), weight.to(out_BQNH.dtype))
        found |= dict(zip(("dq", "dk", "dv"), gradients, strict=True))
    return found


def errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    return {key: ((found[key].float() - exact[key]).abs().max() / exact[key].abs().max()).item() for key in exact}


def check(case_name: str, backends: list[str], device: torch.device, chosen: str) -> bool:
    """Print a line for each of the backends; return whether all are within their limits."""
    case = CASES[case_name]
    tensors = inputs(2, 8, case, device)
    exact = results(plain, [x.float() for x in tensors], case)
    limits = {key: 2 * error + FLOOR for key, error in errors(results(rounded, tensors, case), exact).items()}
    passed = True
    for name in backends:
        line: dict[str, Any] = {"case": case_name, "backend": name, "chosen": name == chosen}
        started = time.perf_counter()
        try:
            got = errors(results(by(name), tensors, case), exact)
            right = all(got[key] <= limits[key] for key in limits)  # what is no number is no less than its limit
            line |= {"passed": right, "errors": got, "limits": limits}
        except Exception as error:  # a kernel that fails is one more result
            line |= {"passed": False, "error": f"{type(error).__name__}: {error}"}
        say(line | {"seconds": time.perf_counter() - started})
        passed &= line["passed"]
    return passed


def rate(attend: Attend, tensors: list[Tensor], case: Case) -> dict[str, float]:
    """Return TFLOP/s forward, and forward and backward together."""
    q, k, v = tensors
    mask = case.mask(q.device)
    rows = case.packs or ((case.queries,),) * q.shape[0]
    pairs = sum(length**2 for pack in rows for length in pack)
    floats = 2 * pairs * q.shape[1] * q.shape[3]  # of one pass: two products, causally halved
    out = attend(q, k, v, mask)
    gradient = torch.randn_like(out)

    def both() -> None:
        torch.autograd.grad(attend(q, k, v, mask), (q, k, v), gradient)

    forward, together = seconds(lambda: attend(q, k, v, mask), q.device), seconds(both, q.device)
    return {"tflops_forward": floats / forward / 1e12, "tflops": 3.5 * floats / together / 1e12}


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Return how long one run takes: of some twenty, or of as many as end within a third of a second."""
    for _ in range(2):
        run()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started, times = time.perf_counter(), 0
    while times < 20 and time.perf_counter() - started < 1 / 3:
        for _ in range(4):
            run()
        times += 4
        wait()
    return (time.perf_counter() - started) / times


def speed(shape: str, device: torch.device) -> bool:
    """Print each kernel's rate, of rows apart and of packs; return whether all ran."""
    batch, heads, queries, head_dim = (int(part) for part in shape.split("x"))
    each = max(1, queries // 8)
    packs = ((*[each] * 7, queries - 7 * each),) * batch
    apart = Case(kv_heads=heads, head_dim=head_dim, queries=queries)
    cases = {"apart": apart} | ({"packs of 8": replace(apart, packs=packs)} if queries > 8 else {})
    ran = [speed_of(rows, case, shape, device) for rows, case in cases.items()]
    return all(ran)


def speed_of(rows: str, case: Case, shape: str, device: torch.device) -> bool:
    batch, heads, *_ = (int(part) for part in shape.split("x"))
    tensors, ran = inputs(batch, heads, case, device), True
    for name, attend in [*((name, by(name)) for name in able(case, device)), ("plain", plain)]:
        line: dict[str, Any] = {"shape": shape, "rows": rows, "backend": name}
        try:
            line |= rate(attend, tensors, case)
        except Exception as error:  # as above; the formula may need more memory than there is
            line |= {"error": f"{type(error).__name__}: {error}"}
            ran &= isinstance(error, torch.OutOfMemoryError)
        say(line)
    return ran


def able(case: Case, device: torch.device) -> list[str]:
    """Names of the kernels that the dispatch may choose, the first of which it does."""
    with torch.set_grad_enabled(case.gradients):
        call = Call.of(inputs(1, 8, case, device)[0], case.mask(device), 0.0)
    return [backend.name for backend in candidates(call, BACKENDS)]


def say(line: dict[str, Any]) -> None:
    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: short(inner) for key, inner in value.items()}
        return float(f"{value:.3g}") if isinstance(value, float) else value

    print(json.dumps(short(line)), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="8x32x2048x128", help="of the rates: batch × heads × tokens × head dim")
    parser.add_argument("--case", choices=CASES, help="only this one, and no rates")
    parser.add_argument("--backend", help="only this one")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA GPU; --device cpu checks the kernels of a CPU")
    if arguments.case is not None:
        names = able(CASES[arguments.case], device)
        return int(not check(arguments.case, [arguments.backend] if arguments.backend else names, device, names[0]))
    return int(not run_all(device, arguments.backend, arguments.shape))


def run_all(device: torch.device, only: str | None, shape: str) -> bool:
    """Run all cases and rates; return whether all is well."""
    started = time.perf_counter()
    say({"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "torch": torch.__version__})
    absent = {backend.name: reason for backend in BACKENDS if (reason := backend.absent()) is not None}
    for name, reason in absent.items():
        say({"backend": name, "absent": reason})
    names = {case: able(CASES[case], device) for case in CASES}
    wanted = {case: [name for name in found if only in (None, name)] for case, found in names.items()}
    apart = [case for case in wanted if COMPILES in wanted[case] and case not in ALIKE]
    command = [sys.executable, __file__, "--device", str(device), "--backend", COMPILES, "--case"]
    children = [subprocess.Popen([*command, case]) for case in apart]
    well = True
    for case in wanted:
        inside = [name for name in wanted[case] if case not in apart or name != COMPILES]
        well &= check(case, inside, device, names[case][0])
    for case, child in zip(apart, children, strict=True):
        status = child.wait()
        if status not in (0, 1):  # it ended without a line
            say({"case": case, "backend": COMPILES, "passed": False, "error": f"its process ended with {status}"})
        well &= status == 0
    if only is None:
        well &= speed(shape, device)
    say({"passed": well, "seconds": time.perf_counter() - started})
    return well


if __name__ == "__main__":
    sys.exit(main())
