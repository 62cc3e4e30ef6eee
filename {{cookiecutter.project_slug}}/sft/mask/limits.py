"""A chat template is a program that comes with a model: it may not loop or allocate without end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

MOST_SECONDS, MOST_BYTES = 20, 4 * 2**30  # of one call; templates take milliseconds


@contextmanager
def limited() -> Iterator[None]:
    """Exit with a sentence where what is inside takes too long or too much memory (on Linux)."""
    if resource is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_most_bytes(soft), hard))
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    except MemoryError:
        raise SystemExit(f"The chat template takes over {MOST_BYTES / 2**30:g} GB.") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


@cache
def _most_bytes(limit: int) -> int:
    """The address space that may be used: what this process has, and `MOST_BYTES`."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        return limit
    return int(pages.read_text().split()[0]) * resource.getpagesize() + MOST_BYTES


def _stop(*_) -> None:
    raise SystemExit(f"The chat template takes over {MOST_SECONDS} seconds for one conversation.")
