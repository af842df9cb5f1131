"""What models set for the whole process: threads and the C library's allocator."""

from __future__ import annotations

import platform

import pytest

from gplfast import ops
from gplfast.models import allocator, session


@pytest.fixture
def own_allocator(monkeypatch):
    """An environment in which the user chose nothing."""
    for name in ("MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)


def test_threads_are_those_of_the_extension(monkeypatch):
    """The affinity alone misses the quota of a container."""
    assert session.default_threads() == ops.info()["threads"]
    monkeypatch.setattr(ops, "available_threads", lambda: 3)
    assert session.default_threads() == 3


@pytest.mark.usefixtures("own_allocator")
def test_glibc_keeps_memory():
    assert allocator.keep_memory() == (platform.libc_ver()[0] == "glibc")


@pytest.mark.usefixtures("own_allocator")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_MMAP_MAX_", "9"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_max=9"),
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2"),
    ],
)
def test_what_the_user_chose_is_left(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not allocator.keep_memory()


@pytest.mark.usefixtures("own_allocator")
def test_other_systems_are_left(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_memory()
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())  # musl: no gnu_get_libc_version
    assert not allocator.keep_memory()
