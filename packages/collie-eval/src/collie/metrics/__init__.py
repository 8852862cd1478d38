"""What an evaluation reports: metrics that see every evaluated row once, in every layout."""

from collie.metrics._base import BaseMetric
from collie.metrics._decode import DecodeMetric
from collie.metrics._ppl import PPLMetric

__all__ = ["BaseMetric", "DecodeMetric", "PPLMetric"]
