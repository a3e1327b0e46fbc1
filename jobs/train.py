"""Train a U-Net on a labelled image set: `python jobs/train.py --help`."""

import sys

from unet.command_line import run_job

if __name__ == "__main__":
    sys.exit(run_job("train"))
