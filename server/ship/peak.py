"""The highest memory of a process that loads one variant and answers one batch: `python -m … RUN NAME`, MB as JSON.

A variant of onnxruntime must not pay for torch here: nothing is imported that it does not need.
"""

import json
import resource
import sys
from pathlib import Path

from .runtime import VARIANTS, OnnxModel


def main(folder: Path, name: str) -> None:
    if name == "torch":
        from .finished import FinishedRun, exported

        model = FinishedRun(folder, *exported(), two_texts=True).merged()
    else:
        model = OnnxModel(folder / VARIANTS / name)
    model.outputs(model.example(32))
    sys.stdout.write(json.dumps({"mb": _peak()}))


def _peak() -> float:
    """Linux carries ru_maxrss of a parent over to its child, so the process' own mark is read where there is one."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
