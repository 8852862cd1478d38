"""The Trainer: epochs, steps, evaluation while training, and everything that watches."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from collie.adapters import after_update, load_peft, prepare_to_train, save_peft
from collie.callbacks import Callback, CallbackManager
from collie.config import CollieConfig
from collie.controller.trainer._evaluation import dataset_evaluator
from collie.controller.trainer._make_step import make_step
from collie.controller.trainer._objective import Objective, RowMean, TokenMean, UserStep
from collie.controller.trainer._progress import TrainingProgress
from collie.controller.trainer._record import Recorder, Requests, StepCounter, agree
from collie.controller.trainer._steps import Step, StepResult
from collie.controller.trainer._weights import load_model, save_model, size_of
from collie.data import CollieDataLoader, ColliePadder, MicroBatch, check_rows
from collie.events import Bye, Checkpoint
from collie.events import Step as StepEvent
from collie.interfaces import ConfigError, DataError, SupportsEval
from collie.models import CollieModelForCausalLM
from collie.module import GPTLMLoss, to_device
from collie.optim import FusedOptimizer
from collie.parallel import engine_for, set_seed, setup_distribution
from collie.utils.monitor import BaseMonitor, MultiMonitors, memory_in_use

_ROWS_TO_CHECK = 256

TrainFn = Callable[["Trainer", dict[str, Any], int], Tensor | float]


class Trainer:
    """Trains `model` on `train_dataset` as `config` says, in every parallel layout with the same result.

    One step is one optimizer update: gradient_accumulation_steps micro-batches of train_micro_batch_size rows on each
    dp rank. Callbacks, monitors, `global_batch_idx` and `eval_per_n_steps` count such steps.

    Args:
        model: a CoLLiE model, or any module that takes the batch's entries and returns an output with `.logits`.
            The config's use_flash is for CoLLiE's models; those of transformers are made with an attention of theirs.
        config: sizes, epochs, evaluation frequency, ds_config.
        tokenizer: handed to the evaluator of `eval_dataset`, and saved with the model.
        loss_fn: GPTLMLoss gives the exact mean over all target tokens of the global batch. Any other callable gets
            the batch's and the output's entries that its parameters name and returns the mean over its rows.
        train_fn: replaces forward and loss: train_fn(trainer, batch, global_step) is called once a micro-batch, with
            pipeline stages once a step with all its rows, and returns the mean loss of its rows, a tensor for the
            Trainer to backpropagate, or a float where it ran backward and the optimizer itself. With
            Lomo(clip_grad_norm=…) under ZeRO-3 a returned tensor is needed twice, and the function is called twice.
        eval_fn: with `eval_dataset`: eval_fn(evaluator, batch) -> dict for the metrics.
        optimizer: a torch optimizer over the model's parameters, or a fused one (Lomo). None: ds_config's
            `optimizer`, or no training.
        lr_scheduler: a scheduler over the optimizer, or a callable that makes one from it; stepped once a step.
        train_dataset: a CollieDatasetForTraining, or any sequence of dicts of lists or tensors.
        eval_dataset: what the generic Evaluator runs `eval_fn` over (needs collie-eval).
        callbacks: one Callback or several.
        train_dataset_collate_fn: makes a batch of rows; default ColliePadder().
        eval_dataset_collate_fn: the same for `eval_dataset`; default ColliePadder(padding_left=True).
        data_provider, server: prompts to the model in training; not available in this version, refused.
        monitors: what is measured each step.
        metrics: for `eval_dataset`, by name.
        evaluators: run every eval_per_n_steps steps and eval_per_n_epochs epochs.

    Raises:
        ConfigError: arguments that do not fit each other; DataError: rows that cannot be trained.
    """

    def __init__(
        self,
        model: nn.Module,
        config: CollieConfig,
        tokenizer: Any = None,
        loss_fn: Callable[..., Tensor] | None = None,
        train_fn: TrainFn | None = None,
        eval_fn: Callable[..., dict[str, Any]] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        lr_scheduler: Any = None,
        train_dataset: Dataset[Any] | Sequence[Any] | None = None,
        eval_dataset: Dataset[Any] | Sequence[Any] | None = None,
        callbacks: Callback | list[Callback] | None = None,
        train_dataset_collate_fn: Callable[..., Any] | None = None,
        eval_dataset_collate_fn: Callable[..., Any] | None = None,
        data_provider: Any = None,
        monitors: Sequence[BaseMonitor] | BaseMonitor | None = None,
        metrics: dict[str, Any] | None = None,
        evaluators: SupportsEval | Sequence[SupportsEval] | None = None,
        server: Any = None,
    ) -> None:
        if data_provider is not None or server is not None:
            raise ConfigError(
                "data_provider/server: prompts to the model in training are not available in this version."
            )
        _refuse_what_is_not_there(model, config)
        prepare_to_train(model, config, optimizer)
        self.model, self.config, self.tokenizer = model, config, tokenizer
        self.topology = setup_distribution(config)
        self.loss_fn = loss_fn if loss_fn is not None else GPTLMLoss()
        self.train_dataset = train_dataset
        set_seed(config)
        self.optimizer = optimizer
        self._step = self._make_step(train_fn)
        self.engine = self._step.engine if self._step is not None else model
        self.lr_scheduler = self._make_scheduler(lr_scheduler)
        self.train_dataloader = self._make_loader(train_dataset_collate_fn or ColliePadder())
        self._steps = StepCounter()
        self._recorder = Recorder(self.topology)
        self.epoch_idx = self.batch_idx = self._epochs_begun = 0
        self.total_steps = self.steps_per_epoch * config.train_epochs  # of all calls of train, up to the running one
        self.evaluators = _as_list(evaluators)
        if eval_dataset is not None:
            collate = eval_dataset_collate_fn or ColliePadder(padding_left=True)
            self.evaluators.append(dataset_evaluator(model, config, eval_dataset, tokenizer, eval_fn, metrics, collate))
        self.monitors = MultiMonitors(_as_list(monitors))
        context = self._recorder.context(self._steps)
        self.monitors.bind(context)
        for evaluator in self.evaluators:
            evaluator.bind(context, model)
        self.callbacks = CallbackManager(callbacks)
        self.callbacks.on_setup_parallel_model(self)
        self.callbacks.on_after_trainer_initialized(self)

    @property
    def global_batch_idx(self) -> int:
        """Index of the last finished step, -1 before the first; kept after `train`."""
        return self._steps()

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch; 0 without training data."""
        return len(self.train_dataloader) if self.train_dataloader is not None else 0

    @property
    def lr(self) -> float:
        """The learning rate of the first parameter group; 0.0 without an optimizer."""
        return float(self.optimizer.param_groups[0]["lr"]) if self.optimizer is not None else 0.0

    @property
    def run_folder(self) -> Any:
        """Path of this run's folder, or None where none could be made."""
        return self._recorder.path

    def train(self) -> None:
        """Train train_epochs epochs, or until a stop is asked for; returns after the last step of either.

        Called again it trains as many epochs more: epochs, and with them the order of rows, count on.

        Raises:
            ConfigError: there is no optimizer, or no training data.
        """
        if self._step is None or self.train_dataloader is None:
            what = "optimizer" if self._step is None else "train_dataset"
            raise ConfigError(f"Trainer.train needs {what}=…, which was not given.")
        first, last = self._epochs_begun, self._epochs_begun + self.config.train_epochs
        self.total_steps = self.global_batch_idx + 1 + self.steps_per_epoch * self.config.train_epochs
        shown = self.topology.rank == 0
        with self._recorder.training(self._steps), TrainingProgress(self.total_steps, shown) as progress:
            self.callbacks.on_train_begin(self)
            stopped = False
            for epoch in range(first, last):
                self.epoch_idx, self._epochs_begun = epoch, epoch + 1
                self.callbacks.on_train_epoch_begin(self)
                stopped = self._train_epoch(progress)
                if stopped:
                    break
                self.callbacks.on_train_epoch_end(self)
                if _due(self.epoch_idx + 1, self.config.eval_per_n_epochs):
                    self.eval()
            self.callbacks.on_train_end(self)
            self._recorder.write(Bye(outcome="stopped" if stopped else "finished"), step=self._steps())

    def eval(self, dataloader: Any = None) -> dict[str, float]:
        """Run every evaluator and return their results together, by metric name."""
        self.callbacks.on_evaluate_begin(self)
        results: dict[str, float] = {}
        for evaluator in self.evaluators:
            results.update(evaluator.eval(dataloader))
        self.callbacks.on_evaluate_end(self, results)
        return results

    def save_model(self, path: str, **arguments: Any) -> None:
        """Write the weights as a Hugging Face folder; collective, ends with a barrier on every rank."""
        began = time.perf_counter()
        save_model(self.model, self.topology, path, self.tokenizer, **arguments)
        if self.topology.rank == 0:
            saved = Checkpoint(path=str(Path(path).resolve()), seconds=time.perf_counter() - began, bytes=size_of(path))
            self._recorder.write(saved, step=self._steps())
        self.callbacks.on_save_model(self)

    def load_model(self, path: str) -> None:
        """Replace the weights of a model of collie.models by a Hugging Face folder's, in any layout and ZeRO stage."""
        load_model(self.model, self.topology, path)
        self.callbacks.on_load_model(self)

    def save_peft(self, path: str, adapter_name: str = "default") -> None:
        """Write the model's adapter in PEFT's files; see `collie.adapters.save_peft`. Collective."""
        save_peft(self.model, path, adapter_name)

    def load_peft(self, path: str, adapter_name: str = "default") -> None:
        """Replace the values of the model's adapter by those of PEFT's files, in any layout. Collective.

        A model without an adapter gets one from `collie.adapters.load_peft`, before its optimizer is made.
        """
        load_peft(self.model, self.config, path, adapter_name)

    def _train_epoch(self, progress: TrainingProgress) -> bool:
        """Run the steps of one epoch; return whether a stop was asked for."""
        assert self.train_dataloader is not None
        for index, micro_batches in enumerate(self.train_dataloader.iterate(self.epoch_idx)):
            self.batch_idx = index
            self.callbacks.on_train_batch_begin(self, micro_batches[0].batch)
            with self.monitors as item:
                result, requests, measured = self._run_step(micro_batches)
                item.update(measured)
            progress.advance(self.epoch_idx, self._steps.finished, measured["loss"])
            self.callbacks.on_train_batch_end(self, result.loss)
            if requests.stop:
                return True
            if requests.evaluate or _due(self._steps.finished, self.config.eval_per_n_steps):
                self.eval()
        return False

    def _run_step(self, micro_batches: list[MicroBatch]) -> tuple[StepResult, Requests, dict[str, Any]]:
        """Make one update; return its result, what was asked of the run, and what monitors are told."""
        assert self._step is not None
        began = time.perf_counter()
        weight = sum(self._step.objective.weigh(m) for m in micro_batches)
        rows = sum(m.rows for m in micro_batches)
        total, rows, requests = agree(self.topology, weight, rows, self._recorder.local_requests())
        if total == 0:
            raise DataError(
                f"the batch of step {self._steps.finished} has no target token on any rank: no label is learnt. "
                f"Check the rows' labels, or max_length, which may cut every answer off."
            )
        self.model.train()
        lr = self.lr
        device = self.topology.device
        result = self._step([MicroBatch(to_device(m.batch, device), m.rows) for m in micro_batches], total)
        if result.applied:
            after_update(self.model)
        if self.lr_scheduler is not None and result.applied:
            self.lr_scheduler.step()
        self._steps.finished += 1
        measured = {
            "global_step": self._steps(),
            "epoch": self.epoch_idx,
            "loss": result.loss.item(),
            "lr": lr,
            "tokens": sum(_count_tokens(m.batch) for m in micro_batches if m.rows),
            "batch_size": rows,
            "world_size": self.topology.world_size,
        }
        self._record(measured, result, time.perf_counter() - began)
        return result, requests, measured

    def _record(self, measured: dict[str, Any], result: StepResult, seconds: float) -> None:
        event = StepEvent(
            loss=measured["loss"],
            lr=measured["lr"],
            tokens=measured["tokens"],
            seconds=seconds,
            epoch=measured["epoch"],
            total=self.total_steps,
            grad_norm=result.grad_norm,
            memory=memory_in_use(),
        )
        self._recorder.write(event, step=measured["global_step"])

    def _make_step(self, train_fn: TrainFn | None) -> Step | None:
        """Choose, once, how a step is made."""
        objective: Objective
        if train_fn is not None:
            objective = UserStep(train_fn, self)
        elif type(self.loss_fn) is GPTLMLoss:  # a subclass may have a forward of its own
            objective = TokenMean(self.model, self.loss_fn)
            self._check_rows()
        else:
            objective = RowMean(self.model, self.loss_fn)
        fused = self.optimizer if isinstance(self.optimizer, FusedOptimizer) else None
        if fused is not None:
            self._prepare_for_fused_updates()
        elif self.optimizer is None and "optimizer" not in self.config.deepspeed:
            return None
        step = make_step(self.model, self.config, self.optimizer, objective, self.topology)
        if fused is None:
            self.optimizer = step.engine.optimizer
        return step

    def _check_rows(self) -> None:
        """Look at rows before any rank works: at all of a list, at the first ones of what may be slow to read."""
        if isinstance(self.train_dataset, list | tuple):
            check_rows(self.train_dataset)
        elif hasattr(self.train_dataset, "__len__"):
            rows: Any = self.train_dataset
            check_rows(rows, limit=_ROWS_TO_CHECK)

    def _prepare_for_fused_updates(self) -> None:
        """Bring a model that CoLLiE did not make to its device and, under ZeRO-3, to its shards."""
        for key in ("gradient_clipping", "optimizer", "scheduler"):
            if self.config.deepspeed.get(key):
                raise ConfigError(
                    f"ds_config[{key!r}] is for optimizers that DeepSpeed steps, and {type(self.optimizer).__name__} "
                    f"steps itself. Take it out, and give the optimizer's own arguments or lr_scheduler instead."
                )
        if not isinstance(self.model, CollieModelForCausalLM):
            self.model.to(self.topology.device)
            if self.config.zero_stage == 3:
                engine_for(self.model, self.config)

    def _make_scheduler(self, scheduler: Any) -> Any:
        if scheduler is None or hasattr(scheduler, "step"):
            return scheduler
        if self.optimizer is None:
            raise ConfigError("lr_scheduler was given without an optimizer.")
        return scheduler(self.optimizer)

    def _make_loader(self, collate: Callable[..., Any]) -> CollieDataLoader | None:
        if self.train_dataset is None:
            return None
        return CollieDataLoader(
            self.train_dataset,
            batch_size=self.config.train_micro_batch_size,
            accumulation_steps=self.config.gradient_accumulation_steps,
            shuffle=True,
            collate_fn=collate,
            num_workers=self.config.dataloader_num_workers,
            seed=self.config.seed,
            dp_rank=self.topology.dp_rank,
            dp_size=self.topology.dp_size,
        )


def _refuse_what_is_not_there(model: nn.Module, config: CollieConfig) -> None:
    """Say what this version does not do, before anything is begun."""
    inside: Any = getattr(model, "get_base_model", lambda: model)  # of PEFT's wrapper
    ours = isinstance(inside(), CollieModelForCausalLM)
    for field in ("tp_size", "pp_size"):
        if not ours and getattr(config, field) > 1:
            raise ConfigError(
                f"{field}={getattr(config, field)} splits models of collie.models only, and this is a "
                f"{type(model).__name__}. Set {field} to 1, and use ZeRO."
            )
    if not ours and config.dropout:
        raise ConfigError(
            f"dropout={config.dropout} reaches models of collie.models only, and this is a {type(model).__name__}. "
            f"Set dropout to 0.0, and the model's own in its config."
        )
    enable: Any = getattr(model, "gradient_checkpointing_enable", None)
    if not ours and config.checkpointing and enable is not None:
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _as_list(one_or_many: Any) -> list[Any]:
    if one_or_many is None:
        return []
    return list(one_or_many) if isinstance(one_or_many, list | tuple) else [one_or_many]


def _count_tokens(batch: dict[str, Any]) -> int:
    """Input tokens of a batch that are not padding."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return int(batch["input_ids"].numel()) if "input_ids" in batch else 0


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
