"""The evaluation job: score a model, or masks already written, on a labelled set.

Every image is scored once, at the size of its mask, through the same `Predictor` as the segmentation job. Workers
count; ratios are computed once, here, of counts over all images.
"""

import io
import json
import math
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import yaml

from unet.data.channels import Channels
from unet.data.check import check
from unet.data.image import ImageError, suffix_of
from unet.data.labelled_set import find_part
from unet.data.labels import LabelSet, read_labels
from unet.data.layouts import Pair
from unet.data.settings import SetSettings
from unet.evaluate.scorer import Scored, Scorer
from unet.evaluate.settings import EvaluateSettings
from unet.model.artifact import Model
from unet.model.bootstrap import CONFIDENCE, RESAMPLES, iou_differences
from unet.model.int8 import check_int8
from unet.model.metrics import ConfusionMatrix, nan_to_none
from unet.model.predictor import Predictor
from unet.report.comparison import SamplePrediction
from unet.report.evaluation import evaluation_report, format_difference
from unet.runtime.memory import retain_freed_memory
from unet.runtime.pool import TaskQueue, Worker, WorkerPool, connect_workers
from unet.runtime.session import check_shared
from unet.settings import ExitCode, RequestError, to_mapping
from unet.storage import store
from unet.storage.faults import StorageError
from unet.storage.objects import join_uri

CHUNKS, LARGEST_CHUNK = 64, 64
"""A set is cut into about so many chunks, of so many pairs at most: enough for workers to end together."""

MASK_SUFFIXES = (".png", ".tif")
"""What is behind the name of an image in that of its written mask."""

SHOWN = 6
"""Images that the page shows of the worst and of the best."""

SECONDS_PER_LINE = 5.0

SCORES, IMAGES, SETTINGS = "scores.json", "images.parquet", "settings.yaml"


@dataclass(frozen=True)
class Evaluation:
    """What is scored, the same for every worker: a model, or the masks of `written` by the URIs of their images."""

    settings: EvaluateSettings
    labels: LabelSet
    model: Model | None
    written: dict[str, str]
    channels: Channels

    def scorer(self, *, gpu: bool) -> Scorer:
        """Return what scores pairs in this process."""
        settings, predictor = self.settings, None
        if self.model is not None:
            device, precision = "cuda" if gpu else "cpu", settings.precision if gpu == settings.gpu else "auto"
            predictor = Predictor(self.model, device=device, precision=precision, tile=settings.tile, tta=settings.tta)
        return Scorer(self.labels, predictor, self.written, channels=self.channels, batch_size=settings.batch_size)


def evaluate(settings: EvaluateSettings) -> int:
    """Run the job; return its exit code.

    Raises:
        RequestError: the request cannot be right, or a file of the set cannot be used.
    """
    settings = replace(
        store.with_absolute_paths(settings, "output", "model", "against", "predictions"),
        data=store.with_absolute_paths(settings.data, "data", "images", "masks", "val_data"),
    )
    model = None if settings.model is None else Model.load(settings.model)
    other = None if settings.against is None else Model.load(settings.against, "--against")
    for flag, given in (("--model", model), ("--against", other)):
        if settings.precision == "int8" and given is not None:
            check_int8(given.int8, flag=f"{flag} {getattr(settings, flag[2:])}")
    labels = _labels(settings, model, other)
    store.check_writable(settings.output, "--output")
    pairs, channels = _pairs(settings, labels, model)
    if other is not None:
        find_part(settings.data, settings.part, other.training)  # which it must not have been trained on
    if other is not None and other.channels != channels:
        _pairs(settings, labels, other)  # whether its bands are there
    written = {} if settings.predictions is None else _written_masks(settings.predictions, settings.data, pairs)
    evaluation = Evaluation(settings, labels, model, written, channels)
    began = time.monotonic()
    try:
        scored, rate = _score_all(evaluation, pairs)
        timing = {"seconds": time.monotonic() - began, "images_per_second": rate}
        scores = _scores(evaluation, scored) | timing
        if other is not None:
            old, _ = _score_all(replace(evaluation, model=other, channels=other.channels), pairs)
            scores["against"] = _against(evaluation, other, scored, old)
        _write(evaluation, scored, scores)
    except ImageError as error:
        raise RequestError(str(error)) from None
    except StorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.UNEXPECTED
    matrix = ConfusionMatrix(scored.counts)
    print(f"mIoU {matrix.mean_iou:.4f}  pixel accuracy {matrix.pixel_accuracy:.4f}  {len(scored.images):,} images")
    if other is not None:
        print(f"against {settings.against}: mIoU {format_difference(scores['against']['miou_difference'])}")
    print(f"scores: {join_uri(settings.output, SCORES)}\nreport: {join_uri(settings.output, 'index.html')}")
    return 0


def _labels(settings: EvaluateSettings, model: Model | None, other: Model | None) -> LabelSet:
    """Return what the masks of the set mean; the classes of the models must be the same."""
    if model is not None and other is not None and model.labels.names != other.labels.names:
        theirs, ours = ", ".join(other.labels.names), ", ".join(model.labels.names)
        raise RequestError(
            f"--against {settings.against}: has the classes {theirs}, and --model has {ours}; only models of the same "
            "classes, in the same order, are compared"
        )
    if model is not None:
        return model.labels_of_set(settings.data)
    labels = read_labels(str(settings.data.labels))
    return labels.with_ignored_as_classes() if settings.data.score_ignore else labels


def _pairs(settings: EvaluateSettings, labels: LabelSet, model: Model | None) -> tuple[tuple[Pair, ...], Channels]:
    """Return what is scored, checked; and the channels of a model, or those that suit the images."""
    found = find_part(settings.data, settings.part, None if model is None else model.training)
    checked = check(found, labels, settings.data, print, None if model is None else model.channels)
    print(checked.table)
    return (*checked.labelled.train, *checked.labelled.val), checked.channels


def _written_masks(folder: str, data: SetSettings, pairs: tuple[Pair, ...]) -> dict[str, str]:
    """Return the URIs of written masks by those of their images. A mask is named as its image is below the folder that
    was segmented: that of the part's images, or all of the set.

    Raises:
        RequestError: names the masks that are missing.
    """
    store.check_readable(folder, "--predictions")
    there = set(store.list_files(folder))
    sets = [f"{uri.removesuffix('/')}/" for uri in (data.folder, data.val_data) if uri]
    written: dict[str, str] = {}
    missing = []
    for pair in pairs:
        below_images = f"{pair.key}{suffix_of(pair.image)}"
        below_sets = [pair.image.removeprefix(above) for above in sets if pair.image.startswith(above)]
        keys = (f"{key}{suffix}" for key in (*below_sets, below_images) for suffix in MASK_SUFFIXES)
        found = next((key for key in keys if key in there), None)
        if found is None:
            missing.append(f"{below_images}{MASK_SUFFIXES[0]}")
        else:
            written[pair.image] = join_uri(folder, found)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RequestError(f"--predictions {folder}: lacks {missing[0]}{more}; segment the set's images first")
    return written


class EvaluateWorker(Worker):
    """Scores chunks of pairs, one while another is read."""

    def __init__(self, evaluation: Evaluation) -> None:
        super().__init__()
        retain_freed_memory()
        self.scorer = evaluation.scorer(gpu=evaluation.settings.gpu)
        self.threads = ThreadPoolExecutor(2)

    def submit(self, task: tuple[Pair, ...]) -> "Future[Scored]":
        return self.threads.submit(self.scorer, task)


def _score_all(evaluation: Evaluation, pairs: tuple[Pair, ...]) -> tuple[Scored, float]:
    """Return what all pairs score, in order of their images, and images per second."""
    settings = evaluation.settings
    workers = connect_workers(settings)
    predictions = {} if settings.predictions is None else {"--predictions": settings.predictions}
    check_shared({"--data": pairs[0].image, "--masks": pairs[0].mask} | predictions, {})
    size = max(1, min(LARGEST_CHUNK, len(pairs) // CHUNKS))
    chunks = TaskQueue(len(pairs))
    chunks.put([pairs[start : start + size] for start in range(0, len(pairs), size)])
    chunks.close()
    parts: list[Scored] = []
    done, first, printed = 0, None, time.monotonic()
    with closing(
        WorkerPool(EvaluateWorker, (ray.put(evaluation),), workers, gpu=settings.gpu).process(chunks)
    ) as results:
        for chunk, scored in (pair for pairs_of_results in results for pair in pairs_of_results):
            if scored is None:
                raise StorageError(chunk[0].image, f"this or one of {len(chunk) - 1} others ends its worker each time")
            parts.append(scored)
            done += len(scored.images)
            first = first or (time.monotonic(), done)
            if time.monotonic() - printed > SECONDS_PER_LINE:
                printed = time.monotonic()
                print(f"scored {done:,} of {len(pairs):,}  {_rate(first, done):.1f} images/s", flush=True)
    return Scored.joined(parts), _rate(first, done)


def _rate(first: tuple[float, int] | None, done: int) -> float:
    """Return images per second since the first were done, so that start-up is not in it; NaN for too few."""
    if first is None or done == first[1]:
        return math.nan
    return (done - first[1]) / (time.monotonic() - first[0])


def _scores(evaluation: Evaluation, scored: Scored) -> dict[str, Any]:
    """Return what scores.json holds, without the timing."""
    settings, model, matrix = evaluation.settings, evaluation.model, ConfusionMatrix(scored.counts)
    columns = {name: getattr(matrix, name) for name in ("iou", "dice", "precision", "recall")}
    columns["pixels"] = matrix.counts.sum(1)
    return {
        "format": 2,
        "data": settings.data.folder,
        "val_data": settings.data.val_data,
        **{name: getattr(settings, name) for name in ("part", "model", "predictions", "tta", "precision")},
        "digest": model and model.digest,
        "images": len(scored.images),
        "pixels": int(matrix.counts.sum()),
        "pixel_accuracy": matrix.pixel_accuracy,
        "mean_class_accuracy": matrix.mean_class_accuracy,
        "miou": matrix.mean_iou,
        "frequency_weighted_iou": matrix.frequency_weighted_iou,
        "mdice": matrix.mean_dice,
        "classes": {
            name: {column: values[index].item() for column, values in columns.items()}
            for index, name in enumerate(evaluation.labels.names)
        },
        "confusion": matrix.counts.tolist(),
    }


def _against(evaluation: Evaluation, other: Model, scored: Scored, old: Scored) -> dict[str, Any]:
    """Return what scores.json says of the other model, and of how the scores differ from its."""
    assert [pair.image for pair in scored.pairs] == [pair.image for pair in old.pairs]
    mean, by_class = iou_differences(scored.overlap, old.overlap)
    matrix = ConfusionMatrix(old.counts)
    return {
        "model": evaluation.settings.against,
        "digest": other.digest,
        "miou": matrix.mean_iou,
        "miou_difference": asdict(mean),
        "resamples": RESAMPLES,
        "confidence": CONFIDENCE,
        "classes": {
            name: {"iou": iou, "iou_difference": asdict(difference)}
            for name, iou, difference in zip(evaluation.labels.names, matrix.iou.tolist(), by_class, strict=True)
        },
    }


def _write(evaluation: Evaluation, scored: Scored, scores: dict[str, Any]) -> None:
    """Write all that an evaluation leaves: the page last, for which images are predicted again, here."""
    settings, labels = evaluation.settings, evaluation.labels
    table = pa.Table.from_pylist([asdict(image) for image in scored.images])
    for index, name in enumerate(labels.names):
        table = table.append_column(f"iou.{name}", pa.array(scored.iou[:, index], from_pandas=True))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    files = {
        IMAGES: buffer.getvalue(),
        SETTINGS: yaml.safe_dump(to_mapping(settings), sort_keys=False).encode(),
        SCORES: json.dumps(nan_to_none(scores), indent=1).encode(),
    }
    for name, data in files.items():
        store.write(join_uri(settings.output, name), data)
    ranked = sorted((image.miou, place) for place, image in enumerate(scored.images) if image.pixels)
    worst, others = ranked[:SHOWN], ranked[SHOWN:][::-1]
    scorer = evaluation.scorer(gpu=False)
    page = evaluation_report(
        title=str(settings.model or settings.predictions),
        facts=_facts(settings, scores),
        labels=labels,
        confusion=ConfusionMatrix(scored.counts),
        against=scores.get("against"),
        images=scored.images,
        worst=(_sample_prediction(scorer, scored.pairs[place]) for _, place in worst),
        best=(_sample_prediction(scorer, scored.pairs[place]) for _, place in others[:SHOWN]),
    )
    store.write(join_uri(settings.output, "index.html"), page)


def _sample_prediction(scorer: Scorer, pair: Pair) -> SamplePrediction:
    example = scorer.read(pair)
    (prediction,) = scorer.predictions([example])
    return SamplePrediction(name=pair.key, image=example.image, truth=example.truth, prediction=prediction)


def _facts(settings: EvaluateSettings, scores: dict[str, Any]) -> dict[str, str]:
    return {
        "Labelled set": f"{settings.data.folder}, {settings.part}",
        "Masks of" if settings.predictions else "Model": str(settings.predictions or settings.model),
        "Images": f"{scores['images']:,}",
        "Scored pixels": f"{scores['pixels']:,}",
        "Mirrored average": "yes" if settings.tta else "no",
        "Time": f"{scores['seconds']:,.1f} s",
    }
