"""What this machine has."""

import os
from contextlib import suppress
from pathlib import Path


def total_ram() -> int:
    """Bytes of the machine's memory, or of what its control group may take of it."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, ValueError):  # other systems have no such file, and a file without a limit a word
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found)
