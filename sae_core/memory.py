"""How much memory this process can still take: the least that its limits and the machine leave.

1. The limit on address space (`ulimit -v`), less what is mapped, and less what threads and compiled
   loops map without using: C libraries end the process when that fails, so it is kept free.
2. The limits of its control group and of those around it, less what they use and cannot drop.
3. What the machine has available, swap included.

Source: proc(5), "Memory Resource Controller" and "Control Group v2" of the Linux kernel.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from collections.abc import Iterator

PROC = Path("/proc")
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
GROUPS = Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
INT_MAX = 2**31 - 1
LARGE = 1 << 20
OLD_MOST = 32 << 20  # the highest threshold that glibc before 2.35 takes
COMPILED = 256 << 20  # mapped by compiled loops; 150 MB were seen
A_THREAD = 80 << 20  # mapped for a thread: 8 MB of stack, and 64 MB of glibc's arena


class Free(NamedTuple):
    """Memory that can still be taken."""

    n_bytes: int
    """Bytes, >= 0."""

    limit: str
    """What sets it."""


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for what asks next; the process then never gets smaller.

    A step of a training frees large blocks and asks for the same again: fetching them from the
    kernel each time took a tenth of the time of `circuits train-model`. Elsewhere than with glibc,
    nothing is done.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is not None:
        if not mallopt(M_MMAP_THRESHOLD, INT_MAX):
            mallopt(M_MMAP_THRESHOLD, OLD_MOST)
        mallopt(M_TRIM_THRESHOLD, INT_MAX)


def free_large_blocks_at_once() -> None:
    """Let glibc give blocks of 1 MB and more back to the kernel when they are freed.

    Otherwise it comes to keep blocks of up to 32 MB, in several arenas. It costs time: a gathering
    with 4,096 features took a quarter longer.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)


def return_freed_memory() -> None:
    """Let glibc return freed blocks to the kernel; elsewhere nothing is done."""
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_libc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def taken_memory(proc: Path = PROC) -> int:
    """Give the bytes of memory that this process has now; on macOS the most it had, on Windows 0."""
    if sys.platform == "win32":
        return 0
    try:
        return int((proc / "self" / "statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10


def byte_size(text: str) -> int:
    """Read a number of bytes, such as 800M or 2.5 GB; units are powers of 1,000.

    Raises:
        ValueError: it is no such number.

    Example:
        >>> byte_size("1.5G"), byte_size("800 MB"), byte_size("4096")
        (1500000000, 800000000, 4096)
    """
    found = SIZE.fullmatch(text.strip().upper())
    if found is None or not float(found[1]):
        raise ValueError(f"{text!r} is not a size, such as 800M or 2G")
    return int(float(found[1]) * UNITS[found[2]])


def refuse_less(n_bytes: int) -> None:
    """Ask for so much memory, and give it back, where a C library would end the process.

    Raises:
        MemoryError: there is less.
    """
    np.empty(n_bytes, np.uint8)  # mapped, but never touched


def megabytes(n_bytes: int) -> str:
    """Say a number of bytes.

    Example:
        >>> megabytes(1_234_567_890)
        '1,235 MB'
    """
    return f"{n_bytes / 1e6:,.0f} MB"


class _Kind(NamedTuple):
    """What the files of control groups are called."""

    folder: str
    most: str
    used: str
    dropped: str
    """Entry of memory.stat: what is dropped when memory is short."""


FIRST = _Kind("memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file")  # version 1
SECOND = _Kind("", "max", "current", "inactive_file")


def free_memory(proc: Path = PROC, groups: Path = GROUPS) -> Free | None:
    """Give the memory that can still be taken.

    Args:
        proc: where the kernel tells of processes.
        groups: where it tells of control groups.

    Returns:
        The least of all that limits it; None where the kernel does not tell, as on macOS.
    """
    if not (proc / "meminfo").exists():
        return None
    found = [_of_machine(proc), *_of_groups(proc, groups), *_of_address_space(proc)]
    least = min(found, key=lambda free: free.n_bytes)
    return least._replace(n_bytes=max(0, least.n_bytes))


def _of_machine(proc: Path) -> Free:
    lines = (line.split() for line in (proc / "meminfo").read_text().splitlines())
    kilobytes = {words[0]: int(words[1]) for words in lines if len(words) > 1}
    n = kilobytes.get("MemAvailable:", 0) + kilobytes.get("SwapFree:", 0)
    return Free(n << 10, "this machine")


def _of_groups(proc: Path, groups: Path) -> Iterator[Free]:
    """Give what is left in the group of this process, and in each around it."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for number, controllers, name in (line.split(":", 2) for line in lines):
        if number != "0" and "memory" not in controllers.split(","):
            continue
        kind = SECOND if number == "0" else FIRST
        own = groups / kind.folder / name.lstrip("/")
        for group in (own, *own.parents):
            left = _left(group, kind)
            if left is not None:
                yield Free(left, f"the limit of the control group {group}")


def _left(group: Path, kind: _Kind) -> int | None:
    """Give what a group's limit leaves, None without one."""
    try:
        most, used = ((group / f"memory.{name}").read_text() for name in (kind.most, kind.used))
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # the outermost has no such files
        return None
    if most.strip() == "max":
        return None
    return int(most) - int(used) + int(kept.get(kind.dropped, 0))


def _of_address_space(proc: Path) -> Iterator[Free]:
    if sys.platform == "win32":
        return
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        mapped = int((proc / "self" / "statm").read_text().split()[0]) * resource.getpagesize()
        torch = sys.modules.get("torch")  # without it, as many threads as cores count and write
        kept = COMPILED + A_THREAD * (torch.get_num_threads() if torch else os.cpu_count() or 1)
        yield Free(most - mapped - kept, "the limit on address space (ulimit -v)")
