"""What an evaluation reports: metrics that see every evaluated row once, in every layout."""

from collie.metrics._accuracy import AccuracyMetric
from collie.metrics._answers import ExactMatchMetric, TokenF1Metric
from collie.metrics._base import BaseMetric
from collie.metrics._bleu import BleuMetric
from collie.metrics._chrf import ChrfMetric
from collie.metrics._classify import ClassifyFPreRecMetric
from collie.metrics._decode import DecodeMetric
from collie.metrics._ppl import PPLMetric
from collie.metrics._rouge import RougeMetric

__all__ = [
    "AccuracyMetric",
    "BaseMetric",
    "BleuMetric",
    "ChrfMetric",
    "ClassifyFPreRecMetric",
    "DecodeMetric",
    "ExactMatchMetric",
    "PPLMetric",
    "RougeMetric",
    "TokenF1Metric",
]
