"""Settings of this process's memory allocator."""

from __future__ import annotations

import ctypes

#: Size (bytes) from which a freed block returns to the kernel at once. Smaller ones are used again
#: without it, since a new block of one MiB costs the kernel hundreds of page faults.
LARGE = 4 << 20
#: Free bytes at the end of a heap, of which each thread may have one, that return to the kernel.
FREE_AT_END = 8 << 20

# Parameters of mallopt, of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def return_large_blocks() -> None:
    """Have blocks of `LARGE` bytes and more returned to the kernel when they are freed.

    By itself glibc raises the threshold to the largest block that was freed, up to 32 MiB. From
    then on payloads of megabytes come from the heaps of the threads, each of which keeps some.
    Without glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE)
        mallopt(_M_TRIM_THRESHOLD, FREE_AT_END)
