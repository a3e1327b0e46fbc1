"""The fingerprint: a digest of the model and of all settings that change a mask."""

import hashlib
import json

from unet.model.artifact import Model
from unet.model.predictor import Predictor
from unet.segment.run_spec import KNOWN_OUTPUTS
from unet.segment.settings import SegmentSettings


def fingerprints(settings: SegmentSettings, model: Model) -> tuple[str, dict[str, str]]:
    """Return the fingerprint, and `RunSpec.earlier`."""
    predictor = Predictor(model, precision=settings.precision, tile=settings.tile, tta=settings.tta)
    decides = predictor.fingerprint | ({} if settings.mask_format == "png" else {"mask_format": settings.mask_format})

    def digest(**more: list[str]) -> str:
        return hashlib.sha256(json.dumps(decides | more, sort_keys=True).encode()).hexdigest()[:16]

    return digest(), {digest(outputs=outputs.split(",")): outputs for outputs in KNOWN_OUTPUTS}
