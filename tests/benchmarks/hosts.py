"""What a second host adds: `python -m tests.benchmarks.hosts`, as root.

The segmentation job runs on clusters of hosts with one core each, in network namespaces, once with one host for workers
and once with two, taking turns. On a machine of two cores none is left for the head, the driver and the S3 server,
which on a real cluster are machines of their own. So a host has three quarters of the time of its core, beside another
host as alone, and the rest is theirs; with `--share 1` they take what they need from two hosts, and from one nothing.
Rates are slopes between two sizes of bucket with the classic model; printed is the rate of two hosts over twice that of
one.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import boto3

from tests.benchmarks.segmentation import fill, save_model
from tests.hosts.network import HERE, network
from tests.servers.s3 import rclone
from unet.model.artifact import Model
from unet.sample.write import write_sample_set

SIZES = (24, 144)
"""Images of the two buckets."""


def rate(root: Path, workers: int, share: float, turn: int) -> float:
    """Images per second of a cluster with so many hosts for workers, which have so much of the time of their cores."""
    with network() as hosts, rclone(root, HERE):
        hosts.environment |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        hosts.add("--num-cpus=0")
        for core in range(workers):
            hosts.add("--num-cpus=1", core=core, share=share)
        few, many = SIZES
        seconds = {}
        for place, count in enumerate((few, few, many)):  # the first is not counted: the code is sent to the hosts
            output = f"out-{workers}-{turn}-{place}"
            boto3.client("s3").create_bucket(Bucket=output)
            flags = ["--input", f"s3://images-{count}", "--output", f"s3://{output}/masks", "--model", "s3://model/it"]
            began = time.monotonic()
            ended = hosts.submit("jobs/segment.py", *flags, "--workers", str(workers))
            seconds[count] = time.monotonic() - began
            assert ended.returncode == 0, ended.stdout + ended.stderr
        return (many - few) / (seconds[many] - seconds[few])


def main() -> None:
    """Parses the arguments and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of images of one size; default: generated ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.75, help="of the time of its core that a host gets")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.images is None:
            write_sample_set(f"{folder}/sample")
        images = sorted((given.images or Path(folder, "sample", "train")).iterdir())
        root = Path(folder, "server")
        (root / "model").mkdir(parents=True)
        Model.load(str(save_model("classic", Path(folder)))).save(str(root / "model" / "it"))
        for count in SIZES:
            fill(root, images, count)
        ratios = []
        for turn in range(given.rounds):
            one, two = (rate(root, workers, given.share, turn) for workers in (1, 2))
            ratios.append(two / (2 * one))
            print(f"one host {one:.2f}, two hosts {two:.2f} images/s", flush=True)
        print(f"two hosts / twice one host: {statistics.median(ratios):.3f} (goal 0.9)")


if __name__ == "__main__":
    main()
