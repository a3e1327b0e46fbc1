"""The progress of training: a bar where the driver has a terminal, else a line every few seconds; from rank 0 alone."""

import time
from typing import Any, Literal

from unet.runtime.ray_internals import progress_bar
from unet.train.journal import Entry

SECONDS_PER_LINE = 5.0

Audience = Literal["terminal", "log", "nobody"]


class Progress:
    """Counts steps from the first one seen, so that start-up is in no rate. Time left includes validations."""

    def __init__(self, total_steps: int, epochs: int, batch_size: int, audience: Audience) -> None:
        self._total_steps, self._epochs, self._batch_size = total_steps, epochs, batch_size
        self._audience = audience
        self._first_step: int | None = None
        self._began = self._said = 0.0
        self._bar: Any = progress_bar("training", total_steps) if audience == "terminal" else None
        self._shown = 0

    def due(self, step: int) -> bool:
        """Return whether it is time for a line; at the first step it always is."""
        now = time.monotonic()
        if self._first_step is None:
            self._first_step, self._began = step, now
            return True
        return now - self._said > (1.0 if self._bar else SECONDS_PER_LINE)

    def log_step(self, step: int, epoch: int, loss: float) -> None:
        """Report a step (from 1) of an epoch (from 0)."""
        self._said = time.monotonic()
        text = f"epoch {epoch + 1}/{self._epochs}  step {step}/{self._total_steps}  loss {loss:.4f}"
        if done := step - (self._first_step or step):
            seconds = (self._said - self._began) / done
            left = (self._total_steps - step) * seconds
            text += f"  {self._batch_size / seconds:.1f} images/s  {left / 60:.1f} minutes left"
        if self._bar:
            self._bar.set_description(text)
            self._bar.update(step - self._shown)
            self._shown = step
        else:
            self.log(text)

    def log_epoch(self, entry: Entry) -> None:
        """Report the scores of an epoch."""
        accuracy, miou = (entry[name] or 0.0 for name in ("val_pixel_accuracy", "val_miou"))
        self.log(
            f"epoch {entry['epoch']}/{self._epochs}  train loss {entry['train_loss']:.4f}  "
            f"val loss {entry['val_loss']:.4f}  accuracy {accuracy:.4f}  mIoU {miou:.4f}  "
            f"{entry['images_per_second']:.1f} images/s  {entry['seconds']:.1f} s"
        )

    def log(self, text: str) -> None:
        """Print a line, where there is an audience."""
        if self._audience != "nobody":
            print(text, flush=True)
