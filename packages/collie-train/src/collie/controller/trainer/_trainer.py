"""The Trainer: epochs, steps, evaluation while training, and everything that watches."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from collie.adapters import after_step, prepare_to_train
from collie.callbacks import Callback, CallbackManager, prepare_callback
from collie.config import CollieConfig
from collie.controller.trainer._checkpoint import Position, Run
from collie.controller.trainer._cost import cost_of
from collie.controller.trainer._evaluation import dataset_evaluator, prompt_server
from collie.controller.trainer._finished import FinishedStep, count_tokens
from collie.controller.trainer._finite import FiniteCheck
from collie.controller.trainer._make_step import make_step
from collie.controller.trainer._monitor_state import MonitorState
from collie.controller.trainer._objective import TokenMean, choose_objective
from collie.controller.trainer._preparation import (
    as_list,
    check_training_rows,
    enable_checkpointing,
    make_loader,
    refuse_what_is_not_there,
)
from collie.controller.trainer._progress import TrainingProgress
from collie.controller.trainer._record import Recorder, StepCounter
from collie.controller.trainer._requests import Requests, agree, failing_together
from collie.controller.trainer._saving import Saving
from collie.controller.trainer._schedule import advance, make_scheduler
from collie.data import ColliePadder, MicroBatch
from collie.events import Alert, Bye, Log
from collie.interfaces import ConfigError, DataError, SupportsEval, SupportsServer, serving
from collie.module import GPTLMLoss, to_device
from collie.parallel import set_seed, setup_distribution
from collie.utils.monitor import BaseMonitor, MultiMonitors

_logger = logging.getLogger(__name__)

TrainFn = Callable[["Trainer", dict[str, Any], int], Tensor | float]


class Trainer:
    """Trains `model` on `train_dataset` as `config` says, in every parallel layout with the same result.

    One step is one optimizer update: gradient_accumulation_steps micro-batches of train_micro_batch_size rows on each
    dp rank. Callbacks, monitors, `global_batch_idx` and `eval_per_n_steps` count such steps.

    While it trains, SIGTERM asks for a checkpoint and the end after the next step, SIGUSR1 and SIGUSR2 for a checkpoint
    alone; so do the dashboard's requests. Whichever rank hears it, all act after the same step.

    Args:
        model: a CoLLiE model, or any module that takes the batch's entries and returns an output with `.logits`.
            The config's use_flash is for CoLLiE's models; those of transformers are made with an attention of theirs.
        config: sizes, epochs, evaluation frequency, ds_config.
        tokenizer: handed to the evaluator of `eval_dataset`, and saved with the model. With collie-eval it also lets
            the model answer the dashboard's prompts, between steps.
        loss_fn: GPTLMLoss gives the exact mean over all target tokens of the global batch. Any other callable gets
            the batch's and the output's entries that its parameters name and returns the mean over its rows; a pack
            of rows (PackedDataset) counts as one, and `cu_seqlens` says where its rows begin.
        train_fn: replaces forward and loss: train_fn(trainer, batch, global_step) is called once a micro-batch, with
            pipeline stages once a step with all its rows, and returns the mean loss of its rows, a tensor for the
            Trainer to backpropagate, or a float where it ran backward and the optimizer itself. With
            Lomo(clip_grad_norm=…) under ZeRO-3 a returned tensor is needed twice, and the function is called twice.
            With pipeline stages every rank of a replica calls it, and torch draws the same numbers for it on each;
            where gradient_accumulation_steps is above 1, the micro-batches' tensors [B, …] and lists of B items are
            put together row by row, those as long as input_ids padded at dimension 1 (labels by -100, others by 0),
            and what else differs between micro-batches is refused.
        eval_fn: with `eval_dataset`: eval_fn(evaluator, batch) -> dict for the metrics.
        optimizer: a torch optimizer over the model's parameters, frozen ones too (with pipeline stages a rank may
            have no others), or a fused one (Lomo). None: ds_config's `optimizer`, or no training.
        lr_scheduler: a scheduler over the optimizer, or a callable that makes one from it; stepped once a step.
        train_dataset: a CollieDatasetForTraining, any sequence of dicts of lists or tensors, or a CollieStream.
        eval_dataset: what the generic Evaluator runs `eval_fn` over (needs collie-eval).
        callbacks: one Callback or several.
        train_dataset_collate_fn: makes a batch of rows; default ColliePadder().
        eval_dataset_collate_fn: the same for `eval_dataset`; default ColliePadder(padding_left=True).
        data_provider: a BaseProvider of prompts, which the model answers between steps (needs collie-eval).
        server: a Server, which has one already; it answers the dashboard if it has a RunFolderProvider.
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
        server: SupportsServer | None = None,
    ) -> None:
        if data_provider is not None and server is not None:
            raise ConfigError("data_provider and server were both given: a server has its own data_provider.")
        refuse_what_is_not_there(model, config)
        enable_checkpointing(model, config)
        prepare_to_train(model, config, optimizer)
        self.model, self.config, self.tokenizer = model, config, tokenizer
        self.topology = setup_distribution(config)
        self.loss_fn = loss_fn if loss_fn is not None else GPTLMLoss()
        self.train_dataset = train_dataset
        set_seed(config)
        objective = choose_objective(model, self.loss_fn, train_fn, self)
        if isinstance(objective, TokenMean):
            check_training_rows(train_dataset, self.topology)
        self._step = make_step(model, config, optimizer, objective, self.topology)
        self.engine: Any = self._step.engine if self._step is not None else model
        if optimizer is None and self._step is not None:
            optimizer = self._step.engine.optimizer  # ds_config's
        self.optimizer = optimizer
        self.lr_scheduler = make_scheduler(lr_scheduler, self.optimizer, config)
        self.train_dataloader = make_loader(
            train_dataset, config, self.topology, train_dataset_collate_fn or ColliePadder()
        )
        self._steps = StepCounter()
        self._recorder = Recorder(self.topology)
        self._check_finite = FiniteCheck(config.on_nan, self.topology, model, self._rows_at, self.alert)
        self.epoch_idx = self.batch_idx = 0
        self._position = Position()
        self.stopped = False  # whether the last call of train ended early, because somebody asked
        self.total_steps = self.steps_per_epoch * config.train_epochs  # of all calls of train, up to the running one
        self.evaluators = as_list(evaluators)
        if eval_dataset is not None:
            collate = eval_dataset_collate_fn or ColliePadder(padding_left=True)
            self.evaluators.append(dataset_evaluator(model, config, eval_dataset, tokenizer, eval_fn, metrics, collate))
        self.monitors = MultiMonitors(as_list(monitors))
        context = self._recorder.context(self._steps)
        self.monitors.bind(context)
        for evaluator in self.evaluators:
            evaluator.bind(context, model)
        self.server = server if server is not None else prompt_server(model, data_provider, tokenizer)
        if self.server is not None:
            self.server.bind(context)
            self._recorder.leave_prompts(self.server.answers_requests)
        self.callbacks = CallbackManager([*prepare_callback(callbacks), MonitorState(self.monitors)])
        self._saving = Saving(self._as_run(), self._recorder, self._steps, self.alert)
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

    @property
    def checkpoint_folder(self) -> str | None:
        """Where checkpoints go that a signal or the dashboard asks for: a CheckpointCallback's folder, if it saves
        what training resumes from, else the run folder's `checkpoints`; None without either."""
        return self._saving.checkpoint_folder

    def alert(self, code: str, message: str) -> None:
        """Tell whoever watches the run something that does not end it: an event and a line of the log, of rank 0.

        code: for programs, lower-case words joined by underscores. message: for people, a sentence.
        """
        if self.topology.rank == 0:
            _logger.warning("%s", message)
            self._recorder.write(Alert(level="warning", code=code, message=message), step=self._steps())

    def train(self, resume: str | Path | None = None) -> None:
        """Train train_epochs epochs, or until a stop is asked for; returns after the last step of either.

        Called again it trains as many epochs more: epochs, and with them the order of rows, count on. What is being
        written of a checkpoint is complete when it returns.

        Args:
            resume: a checkpoint's folder, to go on where it was written and end where that training would have; a
                training that had ended is not begun anew. "auto": the newest whole one in the folders of the
                callbacks that save checkpoints and in `checkpoints`; without any, the training begins at its beginning.
                None: what `collie-tui resume` asked for, else the beginning.

        Raises:
            ConfigError: there is no optimizer, or no training data.
            DataError: a step has no target token on any rank.
            NonFiniteError: a loss or a gradient is NaN or infinite, and the config's on_nan does not let it pass.
            CheckpointError: the checkpoint is not whole, or does not fit this run.
        """
        if self._step is None or self.train_dataloader is None:
            what = "optimizer" if self._step is None else "train_dataset"
            raise ConfigError(f"Trainer.train needs {what}=…, which was not given.")
        asked = self._recorder.asked_to_resume()
        if resume is not None:
            self._stand_at(self._saving.resume(resume))
        elif asked is not None:
            self._stand_at(self._saving.resume_as_asked(asked))
        elif self._position.epoch >= self._position.first_epoch + self.config.train_epochs:
            self._position.first_epoch = self._position.epoch  # that training was over
        place = self._position
        last = place.first_epoch + self.config.train_epochs
        steps_to_come = self.steps_per_epoch * max(0, last - place.epoch) - place.step
        self.total_steps = place.finished + max(0, steps_to_come)
        shown = self.topology.rank == 0
        with self._recorder.training(self._steps), TrainingProgress(self.total_steps, shown) as progress:
            if self.optimizer is not None:
                cost = cost_of(self.optimizer, self.model, self.config)
                self._recorder.write(Log(level="info", message=cost), step=None)
            try:
                with serving(self.server):
                    self._train_until(last, progress)
            except BaseException:
                self._saving.checkpoints.settle_alone()
                raise
            with self._recorder.phase("saving", self._steps):
                self._saving.checkpoints.settle()
            self._recorder.write(Bye(outcome="stopped" if self.stopped else "finished"), step=self._steps())

    def eval(self, dataloader: Any = None) -> dict[str, float]:
        """Run every evaluator and return their results together, by metric name."""
        self.callbacks.on_evaluate_begin(self)
        results: dict[str, float] = {}
        with self._recorder.phase("evaluating", self._steps):
            for evaluator in self.evaluators:
                results.update(evaluator.eval(dataloader))
        self.callbacks.on_evaluate_end(self, results)
        return results

    def save_model(self, path: str, **arguments: Any) -> None:
        """Write weights, config and tokenizer as a Hugging Face folder; collective, ends with a barrier on every rank.

        Args:
            path: of the folder, or a URL that fsspec knows.
            arguments: for the model's save_pretrained.

        Raises:
            ConfigError: the model cannot write itself, or has an adapter.
            CheckpointError: it could not be written; on every rank.
        """
        self._saving.save_model(path, **arguments)

    def load_model(self, path: str) -> None:
        """Replace the weights of a model of collie.models by a Hugging Face folder's, in any layout and ZeRO stage.

        path: a folder, a repository of the Hub, or a URL that fsspec knows.
        """
        self._saving.load_model(path)

    def save_peft(self, path: str, adapter_name: str = "default") -> None:
        """Write the model's adapter in PEFT's files; see `collie.adapters.save_peft`. Collective."""
        self._saving.save_peft(path, adapter_name)

    def load_peft(self, path: str, adapter_name: str = "default") -> None:
        """Replace the values of the model's adapter by those of PEFT's files, in any layout. Collective.

        A model without an adapter gets one from `collie.adapters.load_peft`, before its optimizer is made. `path`: a
        folder, or a URL that fsspec knows.
        """
        self._saving.load_peft(path, adapter_name)

    def save_checkpoint(
        self, path: str | Path, *, wait: bool = True, then: Callable[[Path | str], None] | None = None
    ) -> None:
        """Write all that `train(resume=path)` needs: weights as a Hugging Face folder, and the state of training.

        Collective. Training goes on when the state is copied to memory, and it is written behind it; one checkpoint at
        a time. It takes its place when it is complete, so whatever interrupts this, one that was there before is whole.

        Args:
            path: the checkpoint's folder, or a URL that fsspec knows; one of an earlier checkpoint is replaced.
            wait: return when it is on the disk. False: as soon as it is copied; that it cannot be written is an alert,
                and training goes on.
            then: called with the folder on rank 0, in the writing thread, when the checkpoint is complete.

        Raises:
            CheckpointError: with `wait`: it could not be written; on every rank. A state cannot be kept.
        """
        with self._recorder.phase("saving", self._steps):
            self._saving.checkpoints.save(path, self._position, wait=wait, then=then)

    def load_checkpoint(self, path: str | Path) -> None:
        """Bring everything to where a checkpoint was written; `train()` goes on from there. Collective.

        The layout may be another: tensors are read by slices. With the same one (and the same versions and number of
        threads) what follows is bitwise what would have followed.

        Raises:
            CheckpointError: it is not whole, or not of this model, optimizer and data; on every rank.
        """
        self._stand_at(self._saving.checkpoints.load(path))

    def _as_run(self) -> Run:
        """Return the parts of this Trainer that a checkpoint is about."""
        return Run(
            model=self.model,
            config=self.config,
            topology=self.topology,
            tokenizer=self.tokenizer,
            engine=self.engine,
            optimizer=self.optimizer,
            lr_scheduler=self.lr_scheduler,
            loader=self.train_dataloader,
            callbacks=self.callbacks,
            trainer=self,
        )

    def _stand_at(self, position: Position | None) -> None:
        """Go on from a checkpoint's position; None is of no checkpoint, and changes nothing."""
        if position is None:
            return
        self._position = position
        self._steps.finished = position.finished
        self.epoch_idx, self.batch_idx = position.epoch, max(0, position.step - 1)

    def _train_until(self, last: int, progress: TrainingProgress) -> None:
        """Run what is to come before epoch `last`, or until a stop is asked for."""
        self.model.train()
        self.callbacks.on_train_begin(self)
        self.stopped = False
        for micro_batches in self._global_batches(last):
            self.callbacks.on_train_batch_begin(self, micro_batches[0].batch)
            with self.monitors as item:
                done = self._update(micro_batches)
                item.update(done.as_monitor_item(self.topology.world_size))
            progress.advance(done.epoch, self._steps.finished, done.loss_value)
            self.callbacks.on_train_batch_end(self, done.loss)
            if done.requests.checkpoint:
                self._saving.save_as_asked()
            if done.requests.stop:
                self.stopped = True
                break
            if done.requests.prompt and self.server is not None:
                self.server.data_provider_handler()
            if done.requests.evaluate or _due(self._steps.finished, self.config.eval_per_n_steps):
                self.eval()
        self.callbacks.on_train_end(self)

    def _global_batches(self, last: int) -> Iterator[list[MicroBatch]]:
        """Yield this rank's micro-batches of each step, epoch after epoch; between epochs, do what is due there."""
        assert self.train_dataloader is not None
        place = self._position
        while place.epoch < last:
            self.epoch_idx, first = place.epoch, place.step
            self.callbacks.on_train_epoch_begin(self)
            steps = self.train_dataloader.iterate(self.epoch_idx, first)
            for index in range(first, self.steps_per_epoch):
                self.batch_idx = index
                with failing_together(self.topology):
                    micro_batches = next(steps)
                yield micro_batches
            place.epoch, place.step = self.epoch_idx + 1, 0
            self.callbacks.on_train_epoch_end(self)
            if _due(self.epoch_idx + 1, self.config.eval_per_n_epochs):
                self.eval()

    def _rows_at(self, epoch: int, index: int) -> list[list[int]]:
        """The row numbers in each of this rank's micro-batches of a step."""
        return self.train_dataloader.rows_at(epoch, index) if self.train_dataloader is not None else []

    def _update(self, micro_batches: list[MicroBatch]) -> FinishedStep:
        """Make one optimizer update and write down what came of it."""
        assert self._step is not None
        began = time.perf_counter()
        with failing_together(self.topology):
            weight = sum(self._step.objective.weigh(m) for m in micro_batches)
        rows = sum(m.rows for m in micro_batches)
        asked = self._recorder.local_requests()
        if self.server is not None:
            asked |= Requests(prompt=self.server.waiting())
        total, rows, requests = agree(self.topology, weight, rows, asked)
        if requests.failed:
            raise DataError(
                f"another rank could not read its rows of step {self._steps.finished}: its own error says why, and "
                f"none goes on without it."
            )
        if total == 0:
            raise DataError(
                f"the batch of step {self._steps.finished} has no target token on any rank: no label is learnt. "
                f"Check the rows' labels, or max_length, which may cut every answer off."
            )
        if not self.model.training:  # an evaluation was in between; walking through all modules has its price
            self.model.train()
        lr = self.lr
        device = self.topology.device
        result = self._step([MicroBatch(to_device(m.batch, device), m.rows) for m in micro_batches], total)
        after_step(self.model, result.applied)
        advance(self.lr_scheduler, result)
        self._steps.finished += 1
        self._position.finished, self._position.step = self._steps.finished, self.batch_idx + 1
        done = FinishedStep(
            global_step=self._steps(),
            epoch=self.epoch_idx,
            loss=result.loss,
            loss_value=result.loss.item(),
            lr=lr,
            grad_norm=result.grad_norm,
            tokens=count_tokens(micro_batches),
            rows=rows,
            seconds=time.perf_counter() - began,
            requests=requests,
        )
        self._recorder.write(done.as_event(self.total_steps), step=done.global_step)
        self._check_finite(result, done.loss_value, done.global_step, done.epoch, self.batch_idx)
        return done


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
