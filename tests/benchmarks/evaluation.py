"""How fast the evaluation job is: `python -m tests.benchmarks.evaluation`.

The evaluation job and the segmentation job take turns on the same images with the same model, on one local S3 server.
Rates are slopes between two sizes of set, which leave start-up out: of what evaluation itself takes, and of the whole
command with the check of the set before it. Printed are their medians and their ratios to segmentation's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3

from tests.benchmarks.segmentation import MODELS, SIZES, job, save_model
from tests.servers.s3 import rclone
from unet.sample.write import write_sample_set


def fill(root: Path, pairs: list[tuple[Path, Path]], count: int) -> None:
    """A bucket with a labelled set of `count` pairs, in the server's own folder and before it starts."""
    for kind, which in (("images", 0), ("masks", 1)):
        folder = root / f"set-{count}" / kind
        folder.mkdir(parents=True)
        for place in range(count):
            source = pairs[place % len(pairs)][which]
            (folder / f"{place:05}{source.suffix}").write_bytes(source.read_bytes())


def evaluation(bucket: str, model: Path, output: str) -> tuple[float, float]:
    """Seconds of the command, and of the evaluation in it."""
    folder = Path(os.environ["BENCHMARK_ROOT"], output)
    command = [sys.executable, "jobs/evaluate.py", "--data", f"s3://{bucket}", "--part", "all", "--score-ignore"]
    flags = ["--classes", "camvid", "--model", str(model), "--output", f"s3://{output}/scores"]
    began = time.monotonic()
    subprocess.run([*command, *flags], check=True, capture_output=True)
    taken = time.monotonic() - began
    return taken, json.loads((folder / "scores" / "scores.json").read_text())["seconds"]


def compare(name: str, root: Path, rounds: int) -> None:
    """Prints the figures of one model."""
    model = save_model(name, root.parent)
    few, many = SIZES[name]
    client = boto3.client("s3")
    rates: dict[str, list[float]] = {"evaluation": [], "command": [], "segmentation": []}
    for turn in range(rounds):
        seconds: dict[tuple[str, int], float] = {}
        for count in (few, many):
            for way in ("e", "s"):
                client.create_bucket(Bucket=f"{name}-{turn}-{count}-{way}")
            output = f"{name}-{turn}-{count}"
            seconds["segmentation", count], _ = job(f"set-{count}/images", model, f"{output}-s")
            taken = evaluation(f"set-{count}", model, f"{output}-e")
            seconds["command", count], seconds["evaluation", count] = taken
        for way, rate in rates.items():
            rate.append((many - few) / (seconds[way, many] - seconds[way, few]))
        print(f"{name}: " + ", ".join(f"{way} {rate[-1]:.2f}" for way, rate in rates.items()) + " images/s", flush=True)
    medians = {way: statistics.median(rate) for way, rate in rates.items()}
    print(f"{name}, {few} and {many} images, {rounds} rounds")
    print("  images/s: " + ", ".join(f"{way} {rate:.2f}" for way, rate in medians.items()))
    for way, goal in (("evaluation", " (goal 0.9)"), ("command", "")):
        ratio = statistics.median(x / y for x, y in zip(rates[way], rates["segmentation"], strict=True))
        print(f"  {way} / segmentation {ratio:.3f}{goal}", flush=True)


def main() -> None:
    """Parses the arguments and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a labelled set laid out as CamVid; default: a generated one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = given.data or Path(folder, "sample")
        if given.data is None:
            write_sample_set(str(data))
        pairs = [*zip(*(sorted((data / part).iterdir()) for part in ("val", "valannot")), strict=True)]
        root = Path(folder, "server")
        root.mkdir()
        os.environ["BENCHMARK_ROOT"] = str(root)
        for count in sorted({count for name in given.models for count in SIZES[name]}):
            fill(root, pairs, count)
        with rclone(root):
            for name in given.models:
                compare(name, root, given.rounds)


if __name__ == "__main__":
    main()
