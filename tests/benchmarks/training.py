"""How fast the training job is: `python -m tests.benchmarks.training`.

Three programs train the same network on the same images with the same steps (AdamW, cross-entropy, bf16,
channels-last), taking turns: (a) our job; (b) a hand-written loop around PyTorch's DataLoader; (c) the bound, (b)'s
steps on one batch that is already a tensor. Printed are the medians of their steady rates, their ratios, the job's
seconds from the command to its first step, and the share of the measured bf16 matrix peak.

With `--busy 2` the job and the loop also take turns beside two busy processes. Then two workers with half the
processors each against one with all (`--workers-only`), and how fast Ray Data alone reads, decodes and augments
(`--data-only`), which is what can feed a GPU; this ends with crops of large images of each kind.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.busy import busy_loops
from tests.benchmarks.crops import crops
from unet.data.augment import draw_view
from unet.data.labelled_set import find_labelled_set, read_pair
from unet.data.labels import IGNORE, read_labels
from unet.data.settings import AugmentSettings, DataSettings
from unet.model.network import UNet, normalise, to_channels_last
from unet.model.settings import ModelSettings, Preset, architecture
from unet.runtime.memory import retain_freed_memory
from unet.runtime.session import connect
from unet.sample.write import write_sample_set
from unet.settings import Geometry
from unet.train.batches import BatchStream
from unet.train.examples import BatchRequest, BatchSpec, make_batch
from unet.train.schedule import Sample

SIZE = (128, 128)
SKIPPED = 5
"""Steps of the loops that are not timed: caches and pipelines fill."""


def parts(data: str) -> dict[str, Any]:
    """Settings that name the set, of which all but a few images train."""
    return {"images": f"{data}/train", "masks": f"{data}/trainannot", "val_fraction": 0.01, "classes": "camvid"}


class Pairs(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Decoded and augmented pairs, as a person would write them for a DataLoader."""

    def __init__(self, data: str) -> None:
        self.pairs = find_labelled_set(DataSettings(**parts(data))).train
        self.labels = read_labels("camvid")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        picture, truth = read_pair(self.pairs[index], self.labels)
        view = Geometry("resize", SIZE)
        rng = np.random.default_rng(int(torch.randint(1 << 40, ())))
        image, mask = draw_view(truth.shape, geometry=view, settings=AugmentSettings(), rng=rng).render(picture, truth)
        return torch.tensor(image), torch.tensor(mask)


def loop(data: str, preset: Preset, batch: int, steps: int, *, in_memory: bool) -> float:
    """Images per second of (b), or of (c) where the data is `in_memory`."""
    retain_freed_memory()  # as fast as we can write it
    torch.set_num_threads(os.cpu_count() or 1)
    network = to_channels_last(UNet(classes=11, **architecture(ModelSettings(model=preset)))).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    pairs = Pairs(data)
    loader = DataLoader(
        pairs,
        batch,
        sampler=RandomSampler(pairs, num_samples=(steps + SKIPPED) * batch),
        num_workers=2,
        prefetch_factor=4,
    )
    batches = iter(loader)
    first = next(batches)
    for step in range(steps + SKIPPED):
        if step == SKIPPED:
            started = time.perf_counter()
        images, masks = first if in_memory or step == 0 else next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(normalise(images))
        loss = F.cross_entropy(logits.float(), masks.long(), ignore_index=IGNORE)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())
        if in_memory and step == 0:
            del batches  # stops the loader's workers
    return steps * batch / (time.perf_counter() - started)


def job(data: str, preset: Preset, batch: int, steps: int, workers: int = 1) -> tuple[float, float]:
    """Images per second of (a) after its first epoch, and its seconds to the first step.

    (b) neither validates nor saves; (a) does, between epochs, which its rate leaves out.
    """
    with tempfile.TemporaryDirectory() as output:
        flags = {
            **parts(data),
            "model": preset,
            "size": SIZE,
            "batch-size": batch,
            "epochs": 3,
            "steps-per-epoch": steps // 2,
            "optimizer": "adamw",
            "loss": "ce",
            "ema": 0,
            "clip": 0,
            "class-weights": "none",
            "workers": workers,
            "output": output,
            "name": "benchmark",
        }
        arguments = []
        for name, value in flags.items():
            arguments += [
                f"--{name.replace('_', '-')}",
                *(map(str, value) if isinstance(value, tuple) else [str(value)]),
            ]
        started, first_step = time.monotonic(), 0.0
        command = [sys.executable, "jobs/train.py", *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if not first_step and f"step 1/{steps // 2 * 3} " in line:
                    first_step = time.monotonic() - started
        assert process.returncode == 0, command
        entries = [json.loads(line) for line in Path(output, "benchmark/metrics.jsonl").read_text().splitlines()]
        return statistics.harmonic_mean(entry["images_per_second"] for entry in entries[1:]), first_step


def peak() -> float:
    """FLOP/s of a bf16 matrix product, 2048 x 2048 x 2048, at its best."""
    a, b = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2.0 * 2048.0**3 / min(seconds)


def flops(preset: Preset, size: tuple[int, int] = SIZE) -> float:
    """Floating-point operations of one training image: a forward pass and, at twice that, a backward pass."""
    network = UNet(classes=11, **architecture(ModelSettings(model=preset))).to("meta")
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, *size, device="meta"))
    return 3.0 * int(counter.get_total_flops())


def alone(*arguments: str) -> float:
    """The figure that this file prints when called with these arguments, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.training", *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(data: str, preset: Preset, batch: int, steps: int, rounds: int) -> None:
    """Prints the figures of one model."""
    rates: dict[str, list[float]] = {"a": [], "b": [], "c": []}
    starts = []
    for _ in range(rounds):
        rate, start = job(data, preset, batch, steps)
        rates["a"].append(rate)
        starts.append(start)
        for name, count in (("b", steps), ("c", steps // 4)):
            rates[name].append(alone("--loop", name, data, preset, str(batch), str(count)))
        print(f"{preset}: job {rate:.2f}, loop {rates['b'][-1]:.2f}, bound {rates['c'][-1]:.2f} images/s", flush=True)
    a, b, c = (statistics.median(rates[name]) for name in "abc")
    ratios = [statistics.median(x / y for x, y in zip(rates[p], rates[q], strict=True)) for p, q in ("ab", "bc")]
    print(f"{preset}, batches of {batch} at {SIZE[0]}x{SIZE[1]}, {steps} steps, {rounds} rounds")
    print(f"  images/s: job {a:.2f}, loop {b:.2f}, bound {c:.2f}")
    print(f"  job / loop {ratios[0]:.3f} (goal 0.97), loop / bound {ratios[1]:.3f} (goal 0.9)")
    print(f"  seconds from the command to the first step: {statistics.median(starts):.1f} (goal 15)")
    print(f"  share of the bf16 matrix peak: {a * flops(preset) / alone('--peak'):.2f}", flush=True)


def compare_busy(data: str, loops: int, steps: int, rounds: int) -> None:
    """Prints what the job and the loop make of a machine with other work to do."""
    rates = []
    for _ in range(rounds):
        quiet, _ = job(data, "default", 32, steps)
        with busy_loops(loops):
            busy, _ = job(data, "default", 32, steps)
            loop_rate = alone("--loop", "b", data, "default", "32", str(steps))
        rates.append((busy / loop_rate, busy / quiet))
        print(f"beside {loops} loops: job {busy:.2f}, loop {loop_rate:.2f}; job alone {quiet:.2f} images/s", flush=True)
    beside, kept = (statistics.median(ratios) for ratios in zip(*rates, strict=True))
    print(f"default, batches of 32, beside {loops} busy loops, {steps} steps, {rounds} rounds")
    print(f"  job / loop {beside:.3f} (goal 0.9), job / job alone {kept:.3f} (goal 0.35)", flush=True)


def compare_workers(data: str, rounds: int) -> None:
    """Prints what two workers lose against one on the same processors."""
    rates = [[job(data, "default", 32, 60, workers)[0] for workers in (1, 2)] for _ in range(rounds)]
    one, two = (statistics.median(rate) for rate in zip(*rates, strict=True))
    print(f"default, batches of 32: one worker {one:.2f} images/s, two with half the processors each {two:.2f}")
    print(f"  two / one {statistics.median(b / a for a, b in rates):.3f} (goal 0.9)", flush=True)


def feed(data: str, geometry: Geometry, goal: int) -> None:
    """Print how fast batches of 16 come from Ray Data, every image decoded anew, and how fast one core makes them."""
    view = BatchSpec(read_labels("camvid"), geometry, AugmentSettings(), seed=0)
    # Under many names, since a process keeps what it has decoded by name.
    cores = os.cpu_count() or 1
    endless = enumerate(itertools.cycle(Pairs(data).pairs))
    pairs = tuple(replace(pair, key=f"{place}/{pair.key}") for place, pair in itertools.islice(endless, 400 * cores))
    work = [
        BatchRequest(pairs[first : first + 16], tuple(Sample(first, row) for row in range(16)))
        for first in range(0, len(pairs) - 15, 16)
    ]
    through_ray, alone = work[:-20], work[-20:]
    began, seen = 0.0, 0
    for place, batch in enumerate(BatchStream(view, processes=cores).batches(through_ray)):
        torch.tensor(batch.images), torch.tensor(batch.masks)
        if place == len(through_ray) // 3:
            began, seen = time.perf_counter(), -len(batch.images)
        seen += len(batch.images)
    rate = seen / (time.perf_counter() - began)
    started = time.process_time()
    made = sum(len(make_batch(item, view).images) for item in alone)
    by_itself = made / (time.process_time() - started)
    print(f"data alone, {geometry.kind} {geometry.size[0]}x{geometry.size[1]}: {rate:.0f} images/s")
    print(f"  per core {rate / cores:.0f} (goal {goal}); without Ray {by_itself:.0f}", flush=True)


def main() -> None:
    """Parses the arguments and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="labelled set in CamVid's layout; default: the generated sample set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80, help="of the default model; of classic half as many")
    parser.add_argument("--busy", type=int, default=0, help="busy processes beside the job and the loop, in turn")
    parser.add_argument("--busy-only", action="store_true")
    parser.add_argument("--loops-only", action="store_true")
    parser.add_argument("--workers-only", action="store_true")
    parser.add_argument("--data-only", action="store_true")
    parser.add_argument("--loop", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        torch.set_num_threads(os.cpu_count() or 1)
        print(peak())
    elif given.loop:
        name, data, preset, batch, steps = given.loop
        print(loop(data, preset, int(batch), int(steps), in_memory=name == "c"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            if given.data is None:
                write_sample_set(folder)
            only = given.busy_only or given.loops_only or given.workers_only or given.data_only
            if given.loops_only or not only:
                compare(given.data or folder, "default", 32, given.steps, given.rounds)
                compare(given.data or folder, "classic", 16, given.steps // 2, given.rounds)
            if given.busy and (given.busy_only or not only):
                compare_busy(given.data or folder, given.busy, given.steps, given.rounds)
            if given.workers_only or not only:
                compare_workers(given.data or folder, given.rounds)
            if given.data_only or not only:
                connect(worker_output=False)
                feed(given.data or folder, Geometry("resize", SIZE), 250)
                feed(given.data or folder, Geometry("native", (320, 320)), 100)
                crops(folder)


if __name__ == "__main__":
    main()
