"""Train a U-Net on a labelled image set: `python jobs/train.py --help`."""

import sys

from unet.command_line import run
from unet.settings import TrainSettings
from unet.training import train

if __name__ == "__main__":
    sys.exit(run(train, TrainSettings))
