"""Train a U-Net on a labelled image set: `python jobs/train.py --help`."""

import sys

from unet.command_line import run
from unet.train.job import train
from unet.train.settings import TrainSettings

if __name__ == "__main__":
    sys.exit(run(train, TrainSettings))
