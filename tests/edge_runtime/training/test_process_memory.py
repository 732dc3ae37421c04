import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.training.process_memory import installed_bytes, peak_rss_bytes, restart_peak, rss_bytes

ROOT = Path(__file__).parents[3]


@pytest.mark.process
def test_peak_counts_what_was_given_back():
    """In a process of its own, whose peak nobody else moves."""
    script = """
from edge_runtime.training.process_memory import peak_rss_bytes, restart_peak
before = peak_rss_bytes()
block = bytearray(b"x" * (64 << 20))
del block
after = peak_rss_bytes()
assert after - before > 60 << 20, (before, after)
restart_peak()
again = peak_rss_bytes()
print(after - again)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > -(1 << 20)  # where the peak cannot be restarted it stays, but for what reading it takes


@pytest.mark.process
def test_large_blocks_are_given_back_when_they_are_freed():
    """In a process of its own: the setting is the process's."""
    script = """
from edge_runtime.training.process_memory import return_large_blocks, rss_bytes
if not return_large_blocks():
    print("no glibc")
    raise SystemExit
size = 8 << 20
largest = bytearray(b"x" * size)
del largest  # by default, blocks as large come from the heap from now on
first, second = bytearray(size), bytearray(size)
for block in (first, second):
    block[::4096] = b"x" * len(range(0, size, 4096))
before = rss_bytes()
del first
print(before - rss_bytes())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    if done.stdout.strip() == "no glibc":
        pytest.skip("another C library")
    assert int(done.stdout) > 7 << 20


def test_peak_is_measured_here():
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not say")
    restart_peak()
    assert peak_rss_bytes() > 1 << 20


def test_installed_memory_is_more_than_a_process_uses():
    assert installed_bytes() > peak_rss_bytes()


def test_resident_memory_is_no_more_than_its_peak():
    assert 0 < rss_bytes() <= peak_rss_bytes()
