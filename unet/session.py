"""The connection to Ray: the cluster that is at hand, or else a Ray of our own on this machine alone."""

import logging
import os

import ray
from ray._private.utils import read_ray_address

from unet.settings import RequestError


def connect(*, worker_output: bool) -> bool:
    """Connects to the cluster that RAY_ADDRESS names or `ray start` began on this machine, or starts a Ray that ends
    with this process. Returns whether Ray was started here.

    `worker_output`: shows what a local worker prints. Without it Ray's own remarks, which it would be mixed with, are
    kept in Ray's log files too.

    Raises:
        RequestError: no cluster answers at RAY_ADDRESS.
    """
    if ray.is_initialized():
        return False
    named = os.environ.get("RAY_ADDRESS")
    if address := named or read_ray_address():
        try:
            ray.init(address=address, logging_level=logging.WARNING)
        except ConnectionError:
            if named:
                raise RequestError(f"RAY_ADDRESS {named}: no cluster answers there; start it, or unset it") from None
        else:
            return False
    # Little may run beside the work: on a laptop Ray's idle processes delay every step a little.
    for name in ("RAY_worker_niceness", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "RAY_TRAIN_METRICS_ENABLED"):
        os.environ.setdefault(name, "0")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # see unet.memory; in a worker tensors come before our code
    if not worker_output:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray Data's own actors are told off as errors
    ray.init(address="local", logging_level=logging.ERROR, include_dashboard=False, log_to_driver=worker_output)
    return True
