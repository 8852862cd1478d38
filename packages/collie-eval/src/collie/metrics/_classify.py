"""F, precision and recall of labels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist

from collie.interfaces import ConfigError, DataError
from collie.metrics._base import BaseMetric
from collie.metrics._labels import label_pairs

_Counts = tuple[Counter[Any], Counter[Any], Counter[Any]]  # by label: predicted rightly, predicted, true


class ClassifyFPreRecMetric(BaseMetric):
    """F, precision and recall of the labels of all ranks: scikit-learn's precision_recall_fscore_support.

    Reads `pred` and `target` as AccuracyMetric does. A label that is never predicted has precision 0, one that is
    never true has recall 0 (zero_division=0).

    Args:
        gather_result: see BaseMetric; the value is the same.
        tag_vocab: names of labels, by label or as a list, for the keys of single labels. None means the labels
            themselves.
        only_gross: only the numbers over all labels. With False also `f-NAME`, `pre-NAME` and `rec-NAME` of each
            label that was true or predicted.
        f_type: "micro" counts all labels together; "macro" is the mean of the labels' numbers.
        beta: recall weighs beta times as much as precision.

    Raises:
        ConfigError: another f_type, or a beta that is not above 0.
    """

    def __init__(
        self,
        gather_result: bool = False,
        tag_vocab: Mapping[Any, str] | Sequence[str] | None = None,
        only_gross: bool = True,
        f_type: str = "micro",
        beta: float = 1,
    ) -> None:
        super().__init__(gather_result)
        if f_type not in ("micro", "macro"):
            raise ConfigError(f'ClassifyFPreRecMetric(f_type={f_type!r}): use "micro" or "macro".')
        if not beta > 0:
            raise ConfigError(f"ClassifyFPreRecMetric(beta={beta}): give a number above 0.")
        self.tag_vocab, self.only_gross, self.f_type, self.beta = tag_vocab, only_gross, f_type, beta
        self.reset()

    def reset(self) -> None:
        self._counts: _Counts = (Counter(), Counter(), Counter())

    def update(self, result: dict[str, Any]) -> None:
        hit, predicted, true = self._counts
        for pred, target in label_pairs("ClassifyFPreRecMetric", result):
            for label in (pred, target):
                if not isinstance(label, int | float | str):
                    raise DataError(
                        f"ClassifyFPreRecMetric reads labels as numbers or texts, and got a {type(label).__name__}."
                    )
            predicted[pred] += 1
            true[target] += 1
            hit[target] += pred == target

    def get_metric(self) -> dict[str, float]:
        """{"f", "pre", "rec"} from 0 to 1, equal on every rank, and the labels' own unless `only_gross`.

        Raises:
            DataError: no rank had a label that counts.
        """
        hit, predicted, true = self._of_all_ranks()
        labels = sorted({*predicted, *true}, key=lambda label: (str(type(label)), label))
        if not labels:
            raise DataError("ClassifyFPreRecMetric has seen 0 targets: give the evaluator rows with targets.")
        single = {label: self._numbers(hit[label], predicted[label], true[label]) for label in labels}
        if self.f_type == "macro":
            pre, rec, f = (sum(column) / len(labels) for column in zip(*single.values(), strict=True))
        else:
            pre, rec, f = self._numbers(hit.total(), predicted.total(), true.total())
        result = {"f": f, "pre": pre, "rec": rec}
        if not self.only_gross:
            for label, (pre, rec, f) in single.items():
                name = self._name(label)
                result |= {f"f-{name}": f, f"pre-{name}": pre, f"rec-{name}": rec}
        return result

    def _numbers(self, hit: int, predicted: int, true: int) -> tuple[float, float, float]:
        """Precision, recall and F of counts."""
        weight = self.beta**2
        f = (1 + weight) * hit / (weight * true + predicted) if hit else 0.0
        return hit / predicted if predicted else 0.0, hit / true if true else 0.0, f

    def _of_all_ranks(self) -> _Counts:
        group = self.topology.dp_group
        if group is None or self.gather_result:
            return self._counts
        everyone: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(everyone, self._counts, group=group)
        hit, predicted, true = (sum(parts, Counter[Any]()) for parts in zip(*everyone, strict=True))
        return hit, predicted, true

    def _name(self, label: Any) -> str:
        names = self.tag_vocab
        if names is None:
            return str(label)
        try:
            if isinstance(label, int) and label < 0 and not isinstance(names, Mapping):
                raise IndexError  # it would be counted from the end, and take another label's name
            return str(names[label])
        except (KeyError, IndexError, TypeError):
            raise DataError(
                f"ClassifyFPreRecMetric: label {label!r} has no name in tag_vocab, which has {len(names)} names."
            ) from None
