"""How fast the segmentation job is: `python -m tests.benchmarks.segmentation`.

Three programs segment the same images with the same network in bf16, taking turns: (a) our job; (b) a hand-written loop
around boto3, Pillow and PyTorch; (c) the bound, (b)'s forward passes on arrays that are already in memory. (a) and (b)
read from and write to one local S3 server. Rates are slopes between two sizes of bucket, which leave start-up out;
printed are their medians and ratios, the job's seconds from the command to its first mask, and the share of the
measured bf16 matrix peak. With `--int8` the job also takes its turns in int8. With `--busy 2` the job and the loop also
take turns beside two busy processes.
"""

import argparse
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import torch
from botocore.config import Config
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.busy import busy_loops
from tests.benchmarks.training import peak
from tests.servers.s3 import rclone
from unet.data.labels import read_labels
from unet.model.artifact import Model
from unet.model.int8 import FORMAT, calibrate
from unet.model.network import UNet, normalise, to_channels_last
from unet.runtime.memory import retain_freed_memory
from unet.sample.write import write_sample_set
from unet.settings import Geometry

MODELS: dict[str, dict[str, Any]] = {
    "small": {"width": 8, "norm": "batch", "dropout": 0.0},
    "classic": {"width": 64, "norm": "none", "dropout": 0.3},
}
SIZES = {"small": (200, 1000), "classic": (24, 144)}
"""Images of the two buckets: start-up, whose seconds vary, is little beside what they differ by."""


def save_model(name: str, folder: Path) -> Path:
    """An untrained model: as fast as a trained one."""
    torch.manual_seed(0)
    labels = read_labels("camvid").with_ignored_as_classes()
    network = UNet(classes=12, **MODELS[name]).eval()
    Model(network=network, labels=labels, geometry=Geometry("native", (352, 480))).save(str(folder / name))
    return folder / name


def fill(root: Path, images: list[Path], count: int) -> None:
    """A bucket of `count` images, in the server's own folder and before it starts: it remembers what it has seen."""
    folder = root / f"images-{count}"
    folder.mkdir()
    for place in range(count):
        source = images[place % len(images)]
        (folder / f"{place:05}{source.suffix}").write_bytes(source.read_bytes())


def prepare_int8(folder: Path, images: list[Path]) -> None:
    """What `unet export --int8` does to a model, unchecked: this one knows nothing."""
    model = Model.load(str(folder))
    arrays = (np.asarray(Image.open(path).convert("RGB"))[None].copy() for path in images[:8])
    ranges = calibrate(model.network, (normalise(torch.from_numpy(array)) for array in arrays))
    model.int8 = {"format": FORMAT, "ranges": ranges}
    model.save_int8(str(folder))


def job(bucket: str, model: Path, output: str, *more: str) -> tuple[float, float]:
    """Seconds of (a), and those to its first mask."""
    command = [sys.executable, "jobs/segment.py"]
    flags = ["--input", f"s3://{bucket}", "--output", f"s3://{output}/masks", "--model", str(model), *more]
    folder = Path(os.environ["BENCHMARK_ROOT"], output, "masks")
    began = time.monotonic()
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen([*command, *flags], stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        while process.poll() is None and not any(folder.glob("*.png")):
            time.sleep(0.2)
        first = time.monotonic() - began
        if process.wait():
            log.seek(0)
            raise RuntimeError(log.read())
    return time.monotonic() - began, first


class Loop:
    """(b): threads that fetch and decode ahead, forward passes, threads that encode and write behind."""

    def __init__(self, model: Path) -> None:
        retain_freed_memory()
        torch.set_num_threads(os.cpu_count() or 1)
        sys.setswitchinterval(0.0005)
        loaded = Model.load(str(model))
        self.network = to_channels_last(loaded.network.to(torch.bfloat16))
        self.palette = loaded.labels.colors[: len(loaded.labels.classes)].reshape(-1).tolist()
        self.client = boto3.client("s3", config=Config(max_pool_connections=32))

    def run(self, bucket: str, output: str, batch: int) -> float:
        """Seconds."""
        began = time.monotonic()
        with ThreadPoolExecutor(8) as reading, ThreadPoolExecutor(8) as writing:
            pending: list[Any] = []
            keys = iter([*self.keys(bucket)])
            ahead = [reading.submit(self.fetch, bucket, key) for key in itertools.islice(keys, 32)]
            while ahead:
                ready = [future.result() for future in ahead[:batch]]
                ahead = ahead[batch:] + [
                    reading.submit(self.fetch, bucket, key) for key in itertools.islice(keys, len(ready))
                ]
                masks = self.predict(np.stack([image for _, image in ready]))
                pending += [
                    writing.submit(self.put, output, key, mask) for (key, _), mask in zip(ready, masks, strict=True)
                ]
            for future in pending:
                future.result()
        return time.monotonic() - began

    def keys(self, bucket: str) -> Iterator[str]:
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            yield from (item["Key"] for item in page.get("Contents", ()))

    def fetch(self, bucket: str, key: str) -> tuple[str, np.ndarray[Any, Any]]:
        body = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return key, np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))

    @torch.inference_mode()
    def predict(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        x = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.bfloat16).div_(127.5).sub_(1)
        return self.network(x).argmax(1).to(torch.uint8).numpy()  # type: ignore[no-any-return]

    def put(self, bucket: str, key: str, mask: np.ndarray[Any, Any]) -> None:
        picture = Image.fromarray(mask)
        picture.putpalette(self.palette)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", compress_level=1)
        self.client.put_object(Bucket=bucket, Key=f"masks/{key}.png", Body=buffer.getvalue())

    def bound(self, images: list[Path], count: int, batch: int) -> float:
        """Seconds of (c)."""
        arrays = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in images[:batch]])
        self.predict(arrays)
        began = time.monotonic()
        for _ in range(count // batch):
            self.predict(arrays)
        return time.monotonic() - began


def rates_of(name: str, model: Path, root: Path, batch: int, turn: str) -> tuple[float, float, float]:
    """Images per second of (a) and (b), and the seconds of (a) to its first mask."""
    few, many = SIZES[name]
    client = boto3.client("s3")
    seconds: dict[str, float] = {}
    for count in (few, many):
        output = f"{name}-{turn}-{count}"
        for way in ("a", "b"):
            client.create_bucket(Bucket=f"{output}-{way}")
        seconds[f"a{count}"], first = job(f"images-{count}", model, f"{output}-a")
        seconds[f"b{count}"] = alone("b", str(model), f"images-{count}", f"{output}-b", str(batch))
        made = [len(list((root / f"{output}-{way}" / "masks").glob("*.png"))) for way in "ab"]
        assert made == [count, count], made
    a, b = ((many - few) / (seconds[f"{way}{many}"] - seconds[f"{way}{few}"]) for way in "ab")
    return a, b, first


def int8_rate(name: str, model: Path, turn: str) -> float:
    """Images per second of (a) in int8."""
    client, seconds = boto3.client("s3"), list[float]()
    for count in SIZES[name]:
        output = f"{name}-{turn}-{count}-int8"
        client.create_bucket(Bucket=output)
        seconds.append(job(f"images-{count}", model, output, "--precision", "int8")[0])
    return (SIZES[name][1] - SIZES[name][0]) / (seconds[1] - seconds[0])


def compare(name: str, images: list[Path], root: Path, rounds: int, batch: int, *, int8: bool) -> None:
    """Prints the figures of one model."""
    model = save_model(name, root.parent)
    if int8:
        prepare_int8(model, images)
    int8_rates: list[float] = []
    few, many = SIZES[name]
    rates: dict[str, list[float]] = {"a": [], "b": [], "c": []}
    firsts = []
    for turn in range(rounds):
        a, b, first = rates_of(name, model, root, batch, str(turn))
        c = alone("c", str(model), str(images[0].parent), str(2 * few), str(batch))
        for way, rate in zip("abc", (a, b, c), strict=True):
            rates[way].append(rate)
        firsts.append(first)
        print(f"{name}: job {a:.2f}, loop {b:.2f}, bound {c:.2f} images/s", flush=True)
        if int8:
            int8_rates.append(int8_rate(name, model, str(turn)))
    a, b, c = (statistics.median(rates[way]) for way in "abc")
    ratios = [statistics.median(x / y for x, y in zip(rates[p], rates[q], strict=True)) for p, q in ("ab", "bc")]
    print(f"{name}, {few} and {many} images, {rounds} rounds")
    print(f"  images/s: job {a:.2f}, loop {b:.2f}, bound {c:.2f}")
    print(f"  job / loop {ratios[0]:.3f} (goal 0.95), loop / bound {ratios[1]:.3f} (goal 0.9 for classic)")
    if int8:
        ratio = statistics.median(x / y for x, y in zip(int8_rates, rates["a"], strict=True))
        print(f"  job in int8 {statistics.median(int8_rates):.2f} images/s, int8 / bf16 {ratio:.2f} (classic: 1.9)")
    print(f"  seconds from the command to the first mask: {statistics.median(firsts):.1f} (goal 15)")
    print(f"  share of the bf16 matrix peak: {a * flops(name, images[0]) / alone('peak'):.2f}", flush=True)


def compare_busy(name: str, root: Path, rounds: int, batch: int, loops: int) -> None:
    """Prints what the job and the loop make of a machine with other work to do."""
    model = save_model(name, root.parent)
    ratios = []
    for turn in range(rounds):
        with busy_loops(loops):
            a, b, _ = rates_of(name, model, root, batch, f"busy-{turn}")
        ratios.append(a / b)
        print(f"{name} beside {loops} loops: job {a:.2f}, loop {b:.2f} images/s", flush=True)
    print(f"{name}, beside {loops} busy loops, {rounds} rounds")
    print(f"  job / loop {statistics.median(ratios):.3f} (goal 0.9)", flush=True)


def flops(name: str, image: Path) -> float:
    """Floating-point operations of one image's forward pass."""
    with Image.open(image) as picture:
        width, height = (-(-side // 16) * 16 for side in picture.size)
    network = UNet(classes=12, **MODELS[name])
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, height, width))
    return float(counter.get_total_flops())


def alone(*arguments: str) -> float:
    """The figure that this file prints when called with these arguments, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.segmentation", "--part", json.dumps(arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def part(way: str, *arguments: str) -> float:
    """What `alone` asks for."""
    torch.set_num_threads(os.cpu_count() or 1)
    if way == "peak":
        return peak()
    loop = Loop(Path(arguments[0]))
    if way == "b":
        return loop.run(arguments[1], arguments[2], int(arguments[3]))
    images = sorted(Path(arguments[1]).iterdir())
    batch = int(arguments[3])
    count = int(arguments[2]) // batch * batch
    return count / loop.bound(images, count, batch)


def main() -> None:
    """Parses the arguments and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of images of one size; default: generated ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1, help="images per forward pass of the loop")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--sizes", type=int, nargs=2, help="images of the two buckets; default: many for small models")
    parser.add_argument("--busy", type=int, default=0, help="busy processes beside the job and the loop, in turn")
    parser.add_argument("--int8", action="store_true", help="the job in int8 as well; its processor must have VNNI")
    parser.add_argument("--busy-only", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.sizes:
        SIZES.update(dict.fromkeys(SIZES, tuple(given.sizes)))
    if given.part:
        print(part(*json.loads(given.part)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if given.images is None:
            write_sample_set(f"{folder}/sample")
        images = sorted((given.images or Path(folder, "sample", "train")).iterdir())
        root = Path(folder, "server")
        root.mkdir()
        os.environ["BENCHMARK_ROOT"] = str(root)
        for name in given.models:
            for count in SIZES[name]:
                fill(root, images, count)
        with rclone(root):
            for name in given.models:
                if not given.busy_only:
                    compare(name, images, root, given.rounds, given.batch, int8=given.int8)
                if given.busy:
                    compare_busy(name, root, given.rounds, given.batch, given.busy)


if __name__ == "__main__":
    main()
