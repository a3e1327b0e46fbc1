"""What MLflow is told of a training run where MLFLOW_TRACKING_URI is set: settings, curves, model folder and page.

The driver tells it, from the files of the run. A tracker that fails costs one line, and never the training.
"""

import importlib
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from unet.runtime.background import repeat
from unet.settings import to_mapping
from unet.storage import store
from unet.storage.faults import Vanished
from unet.storage.objects import join_uri
from unet.train.journal import Entry, read_entries, scalars
from unet.train.resume import PAGE, SETTINGS
from unet.train.settings import TrainSettings

TRACKER = "mlflow.json"
"""Names the run in MLflow that a resumed training goes on with."""

EXTRA = "unet-ray[mlflow]"

PERIOD = 15.0
"""Seconds between two looks at the epochs that are done."""

MAX_TEXT = 500
"""Characters of a parameter that every server takes."""

QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Environment of MLflow's client, unless it is set: a server that is away holds nothing up, and nobody else is told."""


@contextmanager
def tracking(settings: TrainSettings, folder: str) -> Iterator[None]:
    """Tell MLflow of the run in `folder`, if one is set up, from the beginning of the block to its end."""
    tracker = _Tracker(settings, folder)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        yield
        return
    tracker.attempt(tracker.begin)
    status = "FAILED"
    try:
        with repeat(partial(tracker.attempt, tracker.add_epochs), PERIOD):
            yield
        status = "FINISHED"
    finally:
        tracker.attempt(partial(tracker.end, status))


class _Tracker:
    """A run in MLflow. What is not reached once is not tried again."""

    def __init__(self, settings: TrainSettings, folder: str) -> None:
        self.settings, self.folder = settings, folder
        self._client: Any = None
        self._run, self._epochs, self._failed = "", 0, False

    def attempt(self, step: Callable[[], None]) -> None:
        """Take a step; where it fails, say so, and take no other."""
        if self._failed:
            return
        try:
            step()
        except Exception as error:  # of a client whose exceptions are many; training does not depend on it
            self._failed = True
            reason = f"install {EXTRA}" if isinstance(error, ImportError) else type(error).__name__
            print(f"warning: MLFLOW_TRACKING_URI is set, but MLflow is not told of this run: {reason}", flush=True)

    def begin(self) -> None:
        """Go on with the run that this training has in MLflow, or begin one."""
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mlflow = importlib.import_module("mlflow")
            self._client = mlflow.MlflowClient()
        uri = join_uri(self.folder, TRACKER)
        with suppress(Vanished, ValueError, KeyError, mlflow.MlflowException):
            known = self._client.get_run(json.loads(store.read(uri))["run"])
            self._run, self._epochs = known.info.run_id, int(known.data.metrics.get("run/epoch", 0))
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._client.create_run(self._experiment(), run_name=self.settings.name).info.run_id
        store.write(uri, json.dumps({"run": self._run}).encode())
        params = {name: str(value)[:MAX_TEXT] for name, value in to_mapping(self.settings).items()}
        self._client.log_batch(self._run, params=[mlflow.entities.Param(*item) for item in params.items()])

    def add_epochs(self) -> None:
        """Tell the epochs that are new."""
        for entry in read_entries(self.folder)[self._epochs :]:
            self._client.log_batch(self._run, metrics=list(self._metrics(entry)))
            self._epochs = entry["epoch"]

    def end(self, status: str) -> None:
        """Tell what is left, and store the files of the run."""
        self.add_epochs()
        files = [SETTINGS, PAGE, *(f"model/{name}" for name in store.list_files(join_uri(self.folder, "model")))]
        with tempfile.TemporaryDirectory(prefix="unet-mlflow-") as copies:
            for name in files:
                with suppress(Vanished):
                    file = Path(copies, name)
                    file.parent.mkdir(exist_ok=True)
                    file.write_bytes(store.read(join_uri(self.folder, name)))
            self._client.log_artifacts(self._run, copies)
        self._client.set_terminated(self._run, status)

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _metrics(self, entry: Entry) -> Iterator[Any]:
        """Yield the numbers of an epoch, under the names that TensorBoard shows."""
        metric, now = importlib.import_module("mlflow.entities").Metric, int(1000 * time.time())
        for name, value in [*scalars(entry), ("run/epoch", entry["epoch"])]:
            yield metric(re.sub(r"[^\w\-. /]", "_", name), float(value), now, entry["epoch"])
