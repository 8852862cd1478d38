"""Perplexity of labelled rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from collie.config import CollieConfig
from collie.controller.evaluator._evaluator import EvalFn, Evaluator
from collie.controller.evaluator._loss import summed_loss
from collie.data import ColliePadder
from collie.interfaces import SupportsServer
from collie.metrics import BaseMetric, PPLMetric
from collie.module import GPTLMLoss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EvaluatorForPerplexity(Evaluator):
    """Measures the loss of the target tokens: labels that are not -100, with a token before them. All weigh the same.

    Args:
        loss_fn: None means GPTLMLoss(). With GPTLMLoss a CoLLiE model sums its loss inside the head, and the full
            [B, S, V] logits never exist. Any other loss gets what its parameters name, from the batch and the model's
            outputs (logits among them), and returns the mean over the target tokens of the batch as a scalar.
        collate_fn: rows → batch; None means ColliePadder().
        metrics: None means {"ppl": PPLMetric()}.

    The other arguments are those of `Evaluator`. Batches must have input_ids and labels, both [B, S].
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
        loss_fn: Callable[..., Any] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            model=model,
            dataset=dataset,
            tokenizer=tokenizer,
            metrics={"ppl": PPLMetric()} if metrics is None else metrics,
            eval_fn=eval_fn,
            config=config,
            collate_fn=collate_fn if collate_fn is not None else ColliePadder(),
            server=server,
            monitors=monitors,
            name=name,
        )
        self.loss_fn = loss_fn if loss_fn is not None else GPTLMLoss()

    def eval_fn(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return loss_sum (nats over the target tokens of the batch, 0-d) and tokens (their number).

        Raises:
            DataError: the batch has no labels.
            ConfigError: an own loss_fn does not fit the batch and the model's outputs, or returned no scalar.
        """
        return summed_loss(self.model, batch, self.loss_fn)
