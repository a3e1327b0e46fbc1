"""The scorer by itself: what it holds while it scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.bench import save_model
from unet.data.image import Array
from unet.data.labelled_set import find_labelled_set
from unet.data.labels import read_labels
from unet.data.open_pair import OpenPair
from unet.data.settings import SetSettings
from unet.evaluate import scorer as module
from unet.evaluate.scorer import Example, Scorer
from unet.model.artifact import Model
from unet.model.predictor import Predictor


def test_promise_36_what_is_decoded_ahead_is_bounded_in_pixels(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DECODED_PIXELS", 2 * 40 * 56, raising=False)
    decode, decoded, ahead = OpenPair.decode, list[str](), list[int]()

    def counting_decode(self: OpenPair, *given: Any, **more: Any) -> Any:
        decoded.append(self.pair.key)
        return decode(self, *given, **more)

    class CountingScorer(Scorer):
        def predictions(self, examples: Sequence[Example]) -> list[Array]:
            result = super().predictions(examples)
            ahead.append(len(decoded) - len(ahead))
            return result

    monkeypatch.setattr(OpenPair, "decode", counting_decode)
    pairs = find_labelled_set(SetSettings(data=str(boxes))).train
    predictor = Predictor(Model.load(save_model(str(tmp_path / "model"))))
    scored = CountingScorer(read_labels(str(boxes / "classes.csv")), predictor, {})(pairs)
    assert len(scored.images) == len(decoded) == len(ahead) == 12
    assert max(ahead) <= 2
