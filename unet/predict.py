"""The one way a model is ever applied: images in, masks out.

image: HWC uint8 RGB of any size; mask: HW uint8 class indices of the same size. The model's geometry decides what the
network sees; logits, never masks, are resized back.
"""

import torch
from torch.nn import functional as F

from unet.artifact import Model
from unet.image import Array, fit_image
from unet.model import channels_last, normalise
from unet.settings import Precision


class Predictor:
    """Applies `model` on `device`."""

    def __init__(self, model: Model, *, device: torch.device | str = "cpu", precision: Precision = "bf16") -> None:
        self.model = model
        self.device = torch.device(device)
        self.precision = precision
        self.network = channels_last(model.network.to(self.device)).eval()

    @torch.inference_mode()
    def predict(self, image: Array) -> Array:
        """The mask of `image`."""
        seen = torch.tensor(fit_image(image, self.model.geometry)).unsqueeze(0).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.network(normalise(seen)).float()
        if logits.shape[-2:] != image.shape[:2]:
            logits = F.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)
        mask: Array = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
        return mask
