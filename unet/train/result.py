"""The report of a training run, written when it is done: its curves and scores, and what its model makes of images."""

import numpy as np

from unet.data.labelled_set import read_checked_pair
from unet.data.layouts import Pair
from unet.model.artifact import Model
from unet.model.metrics import ConfusionMatrix
from unet.model.predictor import Predictor
from unet.report.comparison import SamplePrediction
from unet.report.training import training_report
from unet.storage import store
from unet.storage.objects import join_uri
from unet.train.journal import Entry, read_entries
from unet.train.resume import PAGE
from unet.train.run import TrainingRun

SAMPLES = 6
"""Validation images that it shows."""


def write_report(run: TrainingRun) -> None:
    """Write the page of a run whose model is the best that it found."""
    settings = run.settings
    model = Model.load(join_uri(run.folder, "model"), "--name")
    predictor = Predictor(model)
    chosen = run.labelled.val[:: max(1, len(run.labelled.val) // SAMPLES)][:SAMPLES]
    entries = read_entries(run.folder)
    page = training_report(
        title=settings.name,
        facts=_facts(run, model, entries),
        labels=run.labels,
        history=entries,
        confusion=ConfusionMatrix(np.array(model.scores["confusion"], np.int64)),
        samples=(_sample(run, pair, predictor) for pair in chosen),
    )
    store.write(join_uri(run.folder, PAGE), page)


def _sample(run: TrainingRun, pair: Pair, predictor: Predictor) -> SamplePrediction:
    planes, truth = read_checked_pair(pair, run.labels, run.channels)
    image = planes.to_array()
    return SamplePrediction(name=pair.key, image=image, truth=truth, prediction=predictor.predict(image))


def _facts(run: TrainingRun, model: Model, entries: list[Entry]) -> dict[str, str]:
    geometry = run.settings.geometry
    return {
        "Images": f"{len(run.labelled.train)} train, {len(run.labelled.val)} validation",
        "Input": f"{geometry.kind} {geometry.size[0]} x {geometry.size[1]}",
        "Parameters": f"{sum(p.numel() for p in model.network.parameters()):,}",
        "Steps": f"{entries[-1]['step']} of {run.batch_size} images",
        "Best epoch": f"{model.scores['epoch']} of {len(entries)}",
        "Training time": f"{sum(entry['seconds'] for entry in entries) / 60:.1f} minutes",
    }
