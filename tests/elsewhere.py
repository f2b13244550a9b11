"""Another process, which made none of a test's models: it loads torch once for all scripts that are run there."""

import json
import subprocess
import sys
from pathlib import Path

_RUNS = """
import contextlib, io, json, os, sys, traceback
for line in sys.stdin:
    script, folder = json.loads(line)
    os.chdir(folder)
    printed, failure = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(printed):
            exec(script, {"__name__": "__main__"})
    except BaseException:
        failure = traceback.format_exc()
    print(json.dumps([printed.getvalue(), failure]), flush=True)
"""


class Elsewhere:
    """Runs scripts one after the other; started with the first."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, script: str, folder: Path) -> str:
        """What a script printed in a folder. Raises AssertionError with its traceback."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _RUNS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([script, str(folder)]) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, "the process is gone"
        printed, failure = json.loads(answer)
        assert failure is None, failure
        return printed

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate(timeout=60)
