"""Score a model on a labelled set: `python jobs/evaluate.py --help`."""

import sys

from unet.command_line import run_job

if __name__ == "__main__":
    sys.exit(run_job("evaluate"))
