"""The allocator: what it is asked for exists in glibc, gives memory back, and is left out elsewhere."""

import ctypes
import os
import subprocess
from pathlib import Path

import psutil
import pytest

from fedreft_lib import memory

LOADER = Path("/lib64/ld-linux-x86-64.so.2")


def glibc():
    return hasattr(ctypes.CDLL(None), "malloc_trim")


@pytest.mark.skipif(not LOADER.exists(), reason="no glibc of this machine's kind")
def test_glibc_knows_the_variable_and_has_no_thread_cache_with_it():
    def listed(**more):
        command = [str(LOADER), "--list-tunables"]
        found = subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, check=True).stdout
        return next(line.split()[1] for line in found.splitlines() if line.startswith("glibc.malloc.tcache_count:"))

    assert listed(**memory.NO_THREAD_CACHE) == "0x0"
    assert listed(GLIBC_TUNABLES="glibc.malloc.tcache_count=5") == "0x5"  # so the list follows the variable


def test_what_the_user_has_chosen_stays(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert memory.no_thread_cache() == memory.NO_THREAD_CACHE
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    assert memory.no_thread_cache() == {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}


@pytest.mark.skipif(not glibc(), reason="another allocator")
def test_what_nothing_uses_goes_back_to_the_system():
    def held():
        return psutil.Process().memory_info().rss

    objects = [bytes(1000) for _ in range(200_000)]  # too large for Python's own allocator
    full, last = held(), objects[-1]  # which keeps the heap's end where it is
    del objects
    memory.trim()
    assert full - held() > 150e6 and len(last) == 1000


def test_room_is_made_only_before_a_larger_step_than_all_so_far(monkeypatch):
    made = []
    monkeypatch.setattr(memory, "trim", lambda: made.append(tokens))
    monkeypatch.setattr(memory, "_largest", [0])
    for tokens in (300, 200, 300, 301, 40, 500):
        memory.make_room(tokens)
    assert made == [300, 301, 500]


def test_another_allocator_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    memory.trim()
    memory.give_back_large()
