"""The folders of a training's segments."""

from __future__ import annotations

import shutil

import pytest

from gplfast.store.segments import SegmentFolders


def test_what_cannot_be_deleted_is_not_taken_for_another_trainings(tmp_path, monkeypatch):
    folders = SegmentFolders(tmp_path / "refresh")
    folders.keep_only("one")
    folders.write(0, {"lists": [0]})
    folders.keep_only("one")
    assert folders.finished(0) == {"lists": [0]}

    def stuck(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(f"{path} is busy")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", stuck)
        for _ in range(2):
            with pytest.raises(PermissionError):
                folders.keep_only("two")
    folders.keep_only("two")
    assert folders.record(0) is None


def test_a_folder_that_was_deleted_in_part_is_gone(tmp_path, monkeypatch):
    folders = SegmentFolders(tmp_path / "refresh")
    (folders.path(1, "student") / "model").mkdir(parents=True)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before it deleted anything
        folders.drop(1, "student")
    assert not folders.path(1, "student").exists()
    assert len(list((tmp_path / "refresh" / "1").iterdir())) == 1
    folders.drop(1, "student")
    assert not list((tmp_path / "refresh" / "1").iterdir())
