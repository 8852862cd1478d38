"""What a run can say: one dataclass a kind, each field with its unit. Later versions only add fields with defaults."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal


@dataclass(frozen=True, slots=True)
class Hello:
    """The first line of each file: who writes it. Sizes and coordinates are those of the parallel layout."""

    kind: ClassVar[str] = "hello"

    host: str
    """Name of the machine."""
    pid: int
    """Process id on that machine."""
    process_start: float | None
    """When the process began, in seconds since the epoch; a pid means something only together with it."""
    world_size: int
    """Number of ranks."""
    dp: int
    """Data-parallel coordinate, 0 … dp_size - 1."""
    tp: int
    """Tensor-parallel coordinate, 0 … tp_size - 1."""
    pp: int
    """Pipeline stage, 0 … pp_size - 1."""
    dp_size: int
    """Number of data-parallel replicas."""
    tp_size: int
    """Number of tensor-parallel ranks in a stage."""
    pp_size: int
    """Number of pipeline stages."""
    device: str
    """Name of the device, for example "cuda:0 NVIDIA H200" or "cpu"."""
    versions: dict[str, str]
    """Version by package name."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, as one rank saw it."""

    kind: ClassVar[str] = "step"

    loss: float | None
    """Mean loss of the global batch, in nats a target token; None where this rank does not know it."""
    lr: float | None
    """Learning rate of the step; None where there is none."""
    tokens: int
    """Input tokens that this rank processed: the share of its data-parallel replica."""
    seconds: float
    """Wall time of the step, in seconds."""
    epoch: int = 0
    """Epoch, from 0."""
    total: int | None = None
    """Steps that the whole run will make; None where that is not known."""
    grad_norm: float | None = None
    """Norm of the global gradient before clipping; None where nobody computed it."""
    memory: int | None = None
    """Peak bytes allocated on the device; resident bytes of the process on CPU."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that a monitor measured on this rank."""

    kind: ClassVar[str] = "metric"

    name: str
    """Name, unique within a run."""
    value: float
    """Value in `unit`."""
    unit: str = ""
    """Unit, for example "s", "bytes", "tokens/s"; empty for a pure number."""


@dataclass(frozen=True, slots=True)
class Eval:
    """The results of one evaluation, over all ranks."""

    kind: ClassVar[str] = "eval"

    name: str
    """Name of the evaluator."""
    results: dict[str, float]
    """Value by metric name."""
    seconds: float
    """Wall time of the evaluation, in seconds."""
    rows: int
    """Rows of the dataset that counted, over all ranks."""
    signatures: dict[str, str] = field(default_factory=dict)
    """How a metric was computed, by metric name, for those that say so (sacreBLEU's signature, for example)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated text, to be read by a person."""

    kind: ClassVar[str] = "sample"

    prompt: str
    """What the model was given."""
    output: str
    """What it generated: new text only."""
    target: str | None = None
    """The expected text, where the dataset has one."""


@dataclass(frozen=True, slots=True)
class Log:
    """One line of a log."""

    kind: ClassVar[str] = "log"

    level: str
    """Lower-case name of a logging level: debug, info, warning, error, critical."""
    message: str
    """The text."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint or model that has been written completely."""

    kind: ClassVar[str] = "checkpoint"

    path: str
    """Its folder."""
    seconds: float
    """Wall time of writing, in seconds."""
    bytes: int | None = None
    """Size of its files, in bytes; None where not counted."""


@dataclass(frozen=True, slots=True)
class Alert:
    """Something a person should know now."""

    kind: ClassVar[str] = "alert"

    level: str
    """warning or error."""
    code: str
    """What it is, for programs: lower-case words joined by underscores."""
    message: str
    """What it is, for people: a sentence."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A part of the answer to a prompt request."""

    kind: ClassVar[str] = "prompt"

    request: str
    """Id of the request."""
    text: str
    """The next piece of text; pieces are concatenated."""
    done: bool
    """Whether this was the last piece."""
    error: str = ""
    """With the last piece: a sentence on why there is no answer, or only a part of one; empty where all went well."""
    tokens: int | None = None
    """With the last piece: how many tokens were generated."""
    seconds: float | None = None
    """With the last piece: wall time from the first token to the end, in seconds."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What the run does from now on, told by rank 0: a time without steps has its reason."""

    kind: ClassVar[str] = "phase"

    name: str
    """training, evaluating or saving; a later version may know more."""


@dataclass(frozen=True, slots=True)
class Bye:
    """The last line of a file whose process ended in order."""

    kind: ClassVar[str] = "bye"

    outcome: Literal["finished", "stopped", "failed"]
    """finished: all steps done; stopped: ended early because somebody asked; failed: an error."""
    message: str = ""
    """One sentence about it."""


Event = Hello | Step | Metric | Eval | Sample | Log | Checkpoint | Alert | Prompt | Phase | Bye
