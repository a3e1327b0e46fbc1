"""Write a trained model as an ONNX file: `python jobs/export.py --help`."""

import sys

from unet.command_line import run_job

if __name__ == "__main__":
    sys.exit(run_job("export"))
