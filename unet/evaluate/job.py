"""The evaluation job: scores a model, or masks already written, on a labelled set.

Every image is scored once, at the size of its mask, through the same `Predictor` as the segmentation job. Workers
count; ratios are computed once, here, of counts over all images.
"""

import io
import json
import math
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import yaml

from unet.data.image import ImageError
from unet.data.labelled_set import Pair, check, describe, find_labelled_set
from unet.data.labels import LabelSet, read_labels
from unet.evaluate.scorer import Scored, Scorer
from unet.evaluate.settings import EvaluateSettings
from unet.model.artifact import Model
from unet.model.metrics import ConfusionMatrix, nan_to_none
from unet.model.predictor import Predictor
from unet.report.evaluation import evaluation_report
from unet.report.training import Comparison
from unet.runtime.memory import retain_freed_memory
from unet.runtime.pipeline import Row, actor_pool, connect_workers, dataset_of, pack, stream, unpack
from unet.runtime.session import check_shared
from unet.settings import RequestError, Window, to_mapping
from unet.storage import store
from unet.storage.faults import StorageError
from unet.storage.objects import join_uri

FAILED = 1

CHUNKS, LARGEST_CHUNK = 64, 64
"""A set is cut into about so many chunks, of so many pairs at most: enough for workers to end together."""

SHOWN = 6
"""Images that the page shows of the worst and of the best."""

SECONDS_PER_LINE = 5.0

SCORES, IMAGES, SETTINGS = "scores.json", "images.parquet", "settings.yaml"


def evaluate(settings: EvaluateSettings) -> int:
    """The job: returns its exit code.

    Raises:
        RequestError: the request cannot be right, or a file of the set cannot be used.
    """
    settings = store.with_absolute_paths(settings, "data", "output", "model", "masks")
    model = None if settings.model is None else Model.load(settings.model)
    labels = _labels(settings, model)
    store.check_writable(settings.output, "--output")
    pairs = _pairs(settings, labels, None if model is None else model.window)
    written = {} if settings.masks is None else _written(settings.masks, settings.data, pairs)
    began = time.monotonic()
    try:
        scored, rate = _scored(settings, labels, model, pairs, written)
        matrix = ConfusionMatrix(scored.counts)
        scores = _scores(settings, labels, model, scored) | {
            "seconds": time.monotonic() - began,
            "images_per_second": rate,
        }
        _write(settings, labels, model, written, scored, scores)
    except ImageError as error:
        raise RequestError(str(error)) from None
    except StorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    print(f"mIoU {matrix.mean_iou:.4f}  pixel accuracy {matrix.pixel_accuracy:.4f}  {len(scored.images):,} images")
    print(f"scores: {join_uri(settings.output, SCORES)}\nreport: {join_uri(settings.output, 'index.html')}")
    return 0


def _labels(settings: EvaluateSettings, model: Model | None) -> LabelSet:
    """What the masks of the set mean; a model's classes must be the same."""
    if settings.classes is None:
        assert model is not None
        return model.labels
    labels = read_labels(settings.classes)
    labels = labels.scoring_ignored() if settings.score_ignore else labels
    if model is not None and model.labels.names != labels.names:
        theirs, ours = ", ".join(model.labels.names), ", ".join(labels.names)
        raise RequestError(
            f"--classes {settings.classes}: has the classes {ours}, and the model has {theirs}; give the set's label "
            "file with the model's classes, in the same order"
        )
    return labels


def _pairs(settings: EvaluateSettings, labels: LabelSet, window: Window | None) -> tuple[Pair, ...]:
    labelled = find_labelled_set(settings.set_of(settings.classes or "model"))
    statistics = check(labelled, labels, settings.check_limit, print)
    print(describe(labelled, labels, statistics, window))
    parts = {"val": labelled.val, "train": labelled.train, "all": (*labelled.train, *labelled.val)}
    return parts[settings.part]


def _written(folder: str, data: str, pairs: tuple[Pair, ...]) -> dict[str, str]:
    """The URIs of written masks by those of their images. A mask is named as its image is below the folder that was
    segmented: that of the part's images, or all of `data`.

    Raises:
        RequestError: names the masks that are missing.
    """
    store.check_readable(folder, "--masks")
    there = set(store.list_files(folder))
    written: dict[str, str] = {}
    missing = []
    for pair in pairs:
        below_images = f"{pair.key}{PurePosixPath(pair.image).suffix}.png"
        below_data = f"{pair.image.removeprefix(data.removesuffix('/') + '/')}.png"
        found = next((key for key in (below_data, below_images) if key in there), None)
        if found is None:
            missing.append(below_images)
        else:
            written[pair.image] = join_uri(folder, found)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RequestError(f"--masks {folder}: lacks {missing[0]}{more}; segment the set's images first")
    return written


class _Score:
    """A worker of the pipeline."""

    def __init__(self, settings: EvaluateSettings, labels: LabelSet, model: Any, written: Any) -> None:
        retain_freed_memory()
        self.scorer = _scorer(settings, labels, ray.get(model), ray.get(written), gpu=settings.gpu)

    def __call__(self, row: Row) -> Row:
        try:
            return pack(self.scorer(unpack(row)))
        except (ImageError, StorageError) as error:
            return pack(error)


def _scorer(
    settings: EvaluateSettings, labels: LabelSet, model: Model | None, written: dict[str, str], *, gpu: bool
) -> Scorer:
    predictor = None
    if model is not None:
        device = "cuda" if gpu else "cpu"
        predictor = Predictor(model, device=device, precision=settings.precision, tile=settings.tile, tta=settings.tta)
    return Scorer(labels, predictor, written, batch_size=settings.batch_size)


def _scored(
    settings: EvaluateSettings, labels: LabelSet, model: Model | None, pairs: tuple[Pair, ...], written: dict[str, str]
) -> tuple[Scored, float]:
    """What all pairs scored, in order of their images, and images per second."""
    workers = connect_workers(settings)
    check_shared(_flags(settings, pairs), {})
    size = max(1, min(LARGEST_CHUNK, len(pairs) // CHUNKS))
    plan = dataset_of(pairs[start : start + size] for start in range(0, len(pairs), size)).map_batches(
        _Score,
        fn_constructor_args=(settings, labels, ray.put(model), ray.put(written)),
        batch_size=1,
        compute=actor_pool(*workers),
        num_cpus=0 if settings.gpu else 1,
        num_gpus=1 if settings.gpu else 0,
    )
    parts: list[Scored] = []
    done, first, said = 0, None, time.monotonic()
    with closing(stream(plan)) as results:
        for scored in results:
            if isinstance(scored, Exception):
                raise scored
            parts.append(scored)
            done += len(scored.images)
            first = first or (time.monotonic(), done)
            if time.monotonic() - said > SECONDS_PER_LINE:
                said = time.monotonic()
                print(f"scored {done:,} of {len(pairs):,}  {_rate(first, done):.1f} images/s", flush=True)
    if done != len(pairs):
        raise StorageError(settings.data, f"{len(pairs) - done} images were lost with a process; run it again")
    return Scored.joined(parts), _rate(first, done)


def _flags(settings: EvaluateSettings, pairs: tuple[Pair, ...]) -> dict[str, str]:
    """What workers read, by flag."""
    read = {"--data": pairs[0].image}
    return read if settings.masks is None else read | {"--masks": settings.masks}


def _rate(first: tuple[float, int] | None, done: int) -> float:
    """Images per second since the first were done, so that start-up is not in it; NaN for too few."""
    if first is None or done == first[1]:
        return math.nan
    return (done - first[1]) / (time.monotonic() - first[0])


def _scores(
    settings: EvaluateSettings,
    labels: LabelSet,
    model: Model | None,
    scored: Scored,
) -> dict[str, Any]:
    matrix = ConfusionMatrix(scored.counts)
    columns = {
        "iou": matrix.iou,
        "dice": matrix.dice,
        "precision": matrix.precision,
        "recall": matrix.recall,
        "pixels": matrix.counts.sum(1),
    }
    return {
        "format": 1,
        "data": settings.data,
        "part": settings.part,
        "model": settings.model,
        "digest": model and model.digest,
        "masks": settings.masks,
        "tta": settings.tta,
        "precision": settings.precision,
        "images": len(scored.images),
        "pixels": int(matrix.counts.sum()),
        "pixel_accuracy": matrix.pixel_accuracy,
        "mean_class_accuracy": matrix.mean_class_accuracy,
        "miou": matrix.mean_iou,
        "frequency_weighted_iou": matrix.frequency_weighted_iou,
        "mdice": matrix.mean_dice,
        "classes": {
            name: {column: values[index].item() for column, values in columns.items()}
            for index, name in enumerate(labels.names)
        },
        "confusion": matrix.counts.tolist(),
    }


def _write(
    settings: EvaluateSettings,
    labels: LabelSet,
    model: Model | None,
    written: dict[str, str],
    scored: Scored,
    scores: dict[str, Any],
) -> None:
    """Writes all that an evaluation leaves, scores.json last."""
    scorer = _scorer(settings, labels, model, written, gpu=False)
    known = [place for place, image in enumerate(scored.images) if image.pixels]
    known.sort(key=lambda place: scored.images[place].miou)

    def samples(places: list[int]) -> list[Comparison]:
        shown = []
        for place in places:
            example = scorer.read(scored.pairs[place])
            (prediction,) = scorer.predictions([example])
            name = scored.images[place].key
            shown.append(Comparison(name=name, image=example.image, truth=example.truth, prediction=prediction))
        return shown

    files = evaluation_report(
        title=str(settings.model or settings.masks),
        facts=_facts(settings, scores),
        labels=labels,
        confusion=ConfusionMatrix(scored.counts),
        images=scored.images,
        worst=samples(known[:SHOWN]),
        best=samples(known[SHOWN:][::-1][:SHOWN]),
    )
    table = pa.Table.from_pylist([asdict(image) for image in scored.images])
    for index, name in enumerate(labels.names):
        table = table.append_column(f"iou.{name}", pa.array(scored.iou[:, index], from_pandas=True))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    files[IMAGES] = buffer.getvalue()
    files[SETTINGS] = yaml.safe_dump(to_mapping(settings), sort_keys=False).encode()
    files[SCORES] = json.dumps(nan_to_none(scores), indent=1).encode()
    for name, data in files.items():
        store.write(join_uri(settings.output, name), data)


def _facts(settings: EvaluateSettings, scores: dict[str, Any]) -> dict[str, str]:
    return {
        "Labelled set": f"{settings.data}, {settings.part}",
        "Masks of" if settings.masks else "Model": str(settings.masks or settings.model),
        "Images": f"{scores['images']:,}",
        "Scored pixels": f"{scores['pixels']:,}",
        "Mirrored average": "yes" if settings.tta else "no",
        "Time": f"{scores['seconds']:,.1f} s",
    }
