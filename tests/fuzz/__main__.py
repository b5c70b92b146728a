"""`python -m tests.fuzz`: mutated headers before both readers for an hour, or as long as is said.

A file that makes a reader crash, hang or answer wrongly is kept in tests/fuzz/seeds, where every later run and the
default tests begin with it.
"""

import argparse
import hashlib
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from header_fuzz import KEPT, check, mutations

MOST_MEMORY = 4 * 1024**3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    _limit_memory()
    ends = time.monotonic() + 60 * options.minutes
    count = taken = 0
    print(f"seed {options.seed}", flush=True)
    memory = Path("/dev/shm")  # every taken file is written twice, and a disk would be synced each time
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        for content in mutations(options.seed):
            try:
                taken += check(content, Path(folder))
            except Exception:
                path = KEPT / f"{hashlib.sha256(content).hexdigest()[:16]}.bin"
                path.write_bytes(content)
                print(f"file {count} of seed {options.seed} is kept as {path}", flush=True)
                raise
            count += 1
            if count % 20_000 == 0:
                print(f"{count:,} files, {taken:,} of them taken", flush=True)
            if time.monotonic() > ends:
                break
    print(f"{count:,} files, {taken:,} of them taken; no crash, no hang, no wrong answer")
    return 0


def _limit_memory() -> None:
    """A file that makes a reader take gigabytes shall fail, not fill the machine."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))


if __name__ == "__main__":
    sys.exit(main())
