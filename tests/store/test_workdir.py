"""One writer per work directory, and no way out of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gplfast.errors import ArtifactError, LockedError
from gplfast.store.workdir import WorkDir, inside

HOLD = """
import sys, time
from gplfast.store.workdir import WorkDir
with WorkDir(sys.argv[1]) as work:
    (work.artifact("queries") / ".half.00.tmp").write_bytes(b"x")
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_process_is_refused_and_a_killed_one_frees_it(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "w")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=rf"is being written by process {holder.pid} on .*; wait for it or use"):
            WorkDir(tmp_path / "w").__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with WorkDir(tmp_path / "w") as work:
        assert list(work.artifact("queries").iterdir()) == []  # what the killed writer left is cleared
        assert work.locked
    assert not work.locked


def test_second_object_is_refused_and_the_lock_comes_back(tmp_path):
    with WorkDir(tmp_path) as work:
        with pytest.raises(LockedError, match=f"process {os.getpid()}"):
            WorkDir(tmp_path).__enter__()
        assert work.artifact("a/b").is_dir()
    with WorkDir(tmp_path):
        pass


def test_reading_needs_no_lock_and_creates_nothing(tmp_path):
    work = WorkDir(tmp_path / "w")
    assert work.path("queries") == (tmp_path / "w" / "queries").resolve()
    assert not (tmp_path / "w").exists()
    with pytest.raises(ArtifactError, match="cannot be written without the lock; use 'with WorkDir'"):
        work.artifact("queries")


@pytest.mark.parametrize("name", ["../x", "/etc", "a/../../x", "", ".", "link/x"])
def test_paths_stay_inside(tmp_path, name):
    root = tmp_path / "w"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="leads outside of"):
        inside(root, name)


def test_a_file_is_no_work_directory(tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(ArtifactError, match="f is a file; name a directory"):
        WorkDir(tmp_path / "f").__enter__()
