"""Score a model on a labelled set: `python jobs/evaluate.py --help`."""

import sys

from unet.command_line import run
from unet.evaluate.job import evaluate
from unet.evaluate.settings import EvaluateSettings

if __name__ == "__main__":
    sys.exit(run(evaluate, EvaluateSettings))
