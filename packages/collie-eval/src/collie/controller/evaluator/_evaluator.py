"""The loop that every evaluator shares."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from collie.config import CollieConfig
from collie.controller.evaluator._batches import in_step, prepared
from collie.controller.evaluator._loss import summed_loss
from collie.controller.evaluator._report import numbers_of, samples_of
from collie.data import ColliePadder, MicroBatch, evaluation_batches
from collie.events import Eval, Sample
from collie.interfaces import ConfigError, DataError, RunContext, SupportsServer, serving
from collie.metrics import BaseMetric
from collie.metrics._gather import without_rows
from collie.module import GPTLMLoss
from collie.parallel import Topology, active_topology, setup_distribution
from collie.utils.monitor import MultiMonitors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLES = 4  # rows of generated text that an evaluation writes into the run's events

Result = dict[str, Any]
EvalFn = Callable[["Evaluator", dict[str, Any]], Result]


class Evaluator:
    """Runs a model over a dataset and reports metrics, equal on every rank and in every layout.

    Alone, or in a Trainer, which gives it the step, the event writer and the model through `bind`. Each data-parallel
    rank evaluates its share of the rows; each row counts once, also where the rows do not divide by the ranks.

    Args:
        model: the model to evaluate; its train or eval mode is put back afterwards.
        dataset: a sequence of rows (dicts). None where `eval` is given a dataloader.
        tokenizer: turns ids into text, where metrics or samples need it.
        metrics: name → metric; the names are the keys of what `eval` returns.
        eval_fn: `eval_fn(evaluator, batch) -> dict` in place of the class's own. The batch is on the model's device.
            The dict has what the metrics read: any of pred, target, loss_sum, tokens, input_ids.
        config: layout and `eval_batch_size` (rows a batch on each rank); None means the model's own config, if it has
            one, and batches of 1.
        collate_fn: rows → batch; None means ColliePadder(padding_left=True).
        server: a Server, whose prompts are answered between two batches, one at a time.
        monitors: entered before the evaluation and left after it; they get eval_result, eval_name and global_step.
        name: how this evaluation is called in events and by monitors; None means by its metrics' names in events, and
            "eval" by monitors.

    Raises:
        ConfigError: metrics is no dict of metrics.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Sequence[Any] | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        metrics: Mapping[str, BaseMetric] | None = None,
        eval_fn: EvalFn | None = None,
        config: CollieConfig | None = None,
        collate_fn: Callable[[list[Any]], dict[str, Any]] | None = None,
        server: SupportsServer | None = None,
        monitors: Sequence[Any] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        self.model = model
        self.dataset = dataset
        self.tokenizer = tokenizer
        self.metrics = _checked(metrics)
        self.config = config if config is not None else getattr(model, "collie_config", None)
        self.collate_fn = collate_fn if collate_fn is not None else ColliePadder(padding_left=True)
        self.monitors = MultiMonitors(monitors or [])
        self.server = server
        self.name = name
        self._eval_fn: EvalFn = eval_fn if eval_fn is not None else type(self).eval_fn
        self._context: RunContext | None = None

    @property
    def topology(self) -> Topology:
        """The layout that the evaluation runs in."""
        return active_topology()

    @property
    def device(self) -> torch.device:
        """Where batches go: the model's device."""
        device = getattr(self.model, "device", None)
        if isinstance(device, torch.device):
            return device
        first = next(self.model.parameters(), None)
        return first.device if first is not None else self.topology.device

    def bind(self, context: RunContext, model: nn.Module | None = None) -> None:
        """Become part of a run: take its step and event writer, and the model as the Trainer prepared it."""
        self._context = context
        if model is not None:
            self.model = model
        self.monitors.bind(context)
        if self.server is not None:
            self.server.bind(context)

    def eval_fn(self, batch: dict[str, Any]) -> Result:
        """Evaluate one batch. Here: loss_sum and tokens of its labels; subclasses say otherwise.

        Raises:
            DataError: the batch has no labels.
        """
        return summed_loss(self.model, batch, GPTLMLoss())

    def eval(self, dataloader: Iterable[Any] | None = None) -> dict[str, float]:
        """Evaluate all rows; every rank calls this.

        Args:
            dataloader: batches (dicts) to use in place of the dataset, on each data-parallel rank its own rows.

        Returns:
            Metric name → value; a metric that returns a dict gives `name#key`. Texts are not among them: they are with
            the metric (`get_metric`), and the first few in the run's events.

        Raises:
            ConfigError: neither a dataset nor a dataloader is there.
            DataError: there are no rows, or rows that the evaluation cannot use.
        """
        started = time.perf_counter()
        if self._context is None and self.config is not None:
            setup_distribution(self.config)
        batches = self._batches(dataloader)
        for metric in self.metrics.values():
            metric.construct(self)
            metric.reset()
        with self.monitors as item:
            with evaluating(self.model, self.topology), torch.no_grad(), serving(self.server):
                rows, samples = self._run(batches)
            results = numbers_of({name: metric.get_metric() for name, metric in self.metrics.items()})
            item.update({"eval_result": results, "eval_name": self.name or "eval", "global_step": self._step()})
        seconds = time.perf_counter() - started
        self._publish(Eval(self._title(), results, seconds, rows, self.signatures()), samples)
        return results

    def signatures(self) -> dict[str, str]:
        """How each metric of the last evaluation was computed, by metric name, for those that say so."""
        said = {name: metric.signature for name, metric in self.metrics.items()}
        return {name: signature for name, signature in said.items() if signature is not None}

    def _batches(self, dataloader: Iterable[Any] | None) -> Iterable[MicroBatch]:
        topology = self.topology
        if dataloader is not None:
            return in_step(dataloader, topology)
        if self.dataset is None:
            raise ConfigError(f"dataset=None: give {type(self).__name__} a dataset, or eval() a dataloader.")
        return in_step(self._rows_of_dataset(), topology)

    def _rows_of_dataset(self) -> Iterator[MicroBatch]:
        """This rank's batches; a dataset that cannot be read says so at the first of them, where ranks are in step."""
        topology = self.topology
        yield from evaluation_batches(
            self.dataset,
            self.config.eval_batch_size if self.config is not None else 1,
            topology.dp_rank,
            topology.dp_size,
            self.collate_fn,
            num_workers=self.config.dataloader_num_workers if self.config is not None else 0,
            pin_memory=self.device.type == "cuda",
        )

    def _run(self, batches: Iterable[MicroBatch]) -> tuple[int, list[Sample]]:
        """Feed every batch to the metrics; how many rows counted on all ranks, and this rank's first samples."""
        rows, samples = 0, list[Sample]()
        for micro_batch in batches:
            result = self._eval_fn(self, prepared(micro_batch, self.device))
            if not isinstance(result, dict):
                raise ConfigError(f"eval_fn must return a dict, and returned a {type(result).__name__}.")
            rows += micro_batch.rows
            counted = result if micro_batch.rows else without_rows(result)
            if len(samples) < _SAMPLES:
                samples += samples_of(counted, self.tokenizer, _SAMPLES - len(samples))
            for metric in self.metrics.values():
                if metric.gather_result:
                    metric.update(metric.gather(counted))  # fillers too: every rank takes part
                elif micro_batch.rows:
                    metric.update(result)
            if self.server is not None:  # every rank has as many batches
                self.server.data_provider_handler()
        total = _sum_over_replicas(rows, self.topology)
        if total == 0:
            raise DataError(
                f"The evaluation of {self._title()} had 0 rows: give {type(self).__name__} a dataset with rows."
            )
        return total, samples

    def _title(self) -> str:
        return self.name or ", ".join(self.metrics) or type(self).__name__

    def _step(self) -> int:
        return self._context.step() if self._context is not None else 0

    def _publish(self, report: Eval, samples: list[Sample]) -> None:
        if self._context is None or self._context.rank != 0:
            return
        step = self._step()
        self._context.events.write(report, step=step)
        for sample in samples:
            self._context.events.write(sample, step=step)


def _checked(metrics: Mapping[str, BaseMetric] | None) -> dict[str, BaseMetric]:
    if metrics is not None and not isinstance(metrics, Mapping):
        raise ConfigError(f"metrics must be a dict name → metric, and is a {type(metrics).__name__}.")
    for name, metric in (metrics or {}).items():
        if not isinstance(metric, BaseMetric):
            raise ConfigError(f"metrics[{name!r}] must be a BaseMetric, and is a {type(metric).__name__}.")
    return dict(metrics or {})


@contextmanager
def evaluating(model: nn.Module, topology: Topology) -> Iterator[None]:
    """Eval mode inside; afterwards each submodule is in its own earlier mode, and the random state is as it was."""
    modes = {module: module.training for module in model.modules()}
    devices = [topology.device] if topology.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            model.train(modes[model])
            for module, mode in modes.items():
                module.training = mode


def _sum_over_replicas(count: int, topology: Topology) -> int:
    if topology.dp_group is None:
        return count
    total = torch.tensor(count, device=topology.device)
    dist.all_reduce(total, group=topology.dp_group)
    return int(total)
