"""A job as a process of its own."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.conftest import ROOT
from tests.processes import descendants


class JobProcess:
    """`python jobs/SCRIPT`, which appends to a log. `environment` is added to that of this process."""

    def __init__(self, script: str, arguments: list[str], log: Path, **environment: str) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, f"jobs/{script}", *arguments],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,
            )

    def end(self) -> int:
        """Wait for the job, print its log and return its exit code. A Ray of its own ends with it."""
        code = self.process.wait(300)
        for process in descendants(self.process.pid):
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        print(self.log.read_text())
        return code
