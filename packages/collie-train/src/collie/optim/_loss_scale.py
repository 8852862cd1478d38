"""The factor that keeps small float16 gradients above the smallest float16, found by trying."""

from typing import Any

import torch

from collie.interfaces import ConfigError


class DynamicLossScaler:
    """Multiplies the loss, and so every gradient, by a factor that is as large as float16 lets it be.

    A step whose gradients overflow is skipped and divides the factor; many steps without overflow multiply it
    (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2).

    Args:
        init_scale: the factor at the start. Each step that it is too large for is skipped.
        scale_factor: what an overflow divides by and a good window multiplies by.
        scale_window: steps without overflow after which the factor grows.
        min_scale: the factor is never less.
        delayed_shift: how many overflows it takes until the factor shrinks.
        consecutive_hysteresis: whether a good step lets the count of overflows begin anew; else a grown factor does.
        raise_error_at_min_scale: whether an overflow at `min_scale` is an error.
        dtype: of the weights: float16, the one that needs this.

    Raises:
        ConfigError: a value that cannot be meant.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        scale_factor: float = 2.0,
        scale_window: int = 1000,
        min_scale: float = 1.0,
        delayed_shift: int = 1,
        consecutive_hysteresis: bool = False,
        raise_error_at_min_scale: bool = True,
        dtype: torch.dtype = torch.half,
    ) -> None:
        if dtype is not torch.half:
            raise ConfigError(f"dtype={dtype}: losses are scaled for float16 weights alone. Leave dtype out.")
        if not (init_scale >= min_scale > 0 and scale_factor > 1 and scale_window >= 1 and delayed_shift >= 1):
            raise ConfigError(
                f"init_scale={init_scale}, min_scale={min_scale}, scale_factor={scale_factor}, "
                f"scale_window={scale_window}, delayed_shift={delayed_shift}: needed are init_scale ≥ min_scale > 0, "
                f"scale_factor > 1, scale_window ≥ 1 and delayed_shift ≥ 1."
            )
        self.loss_scale = float(init_scale)
        self._factor, self._window, self._least = scale_factor, scale_window, min_scale
        self._patience, self._patience_returns = delayed_shift, consecutive_hysteresis
        self._raises = raise_error_at_min_scale
        self._left = delayed_shift  # overflows until the factor shrinks
        self._good = 0  # steps since the last overflow or growth

    def update_scale(self, overflow: bool) -> None:
        """Count a step.

        Raises:
            FloatingPointError: gradients overflow at the least factor that is allowed.
        """
        if overflow:
            self._shrink()
            return
        self._good += 1
        if self._patience_returns:
            self._left = self._patience
        if self._good == self._window:
            self._good, self._left = 0, self._patience
            self.loss_scale *= self._factor

    def state_dict(self) -> dict[str, Any]:
        """Return what changes while training."""
        return {"loss_scale": self.loss_scale, "left": self._left, "good": self._good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.loss_scale, self._left, self._good = float(state["loss_scale"]), int(state["left"]), int(state["good"])

    def _shrink(self) -> None:
        self._good = 0
        if self._left > 1:
            self._left -= 1
            return
        if self.loss_scale == self._least and self._raises:
            raise FloatingPointError(
                f"float16 gradients overflow although the loss is scaled by no more than min_scale={self._least:g}: "
                f"the training diverges. Lower the learning rate, or train in bfloat16."
            )
        self.loss_scale = max(self.loss_scale / self._factor, self._least)
