"""One folder for what is compiled on a machine, whose code nobody else can put there."""

import os
from pathlib import Path

import pytest

from fastreid_rib.base import cache


@pytest.fixture(autouse=True)
def nothing_named(tmp_path, monkeypatch):
    monkeypatch.delenv("FASTREID_RIB_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_it_is_where_the_user_wants_it(tmp_path, monkeypatch):
    at_home = tmp_path / "home" / ".cache" / "fastreid-rib" / "made"
    assert cache.cache_folder("made") == at_home
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which its standard says to ignore
    assert cache.cache_folder("made") == at_home
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder("made") == tmp_path / "fastreid-rib" / "made"
    monkeypatch.setenv("FASTREID_RIB_CACHE", "~/own")
    assert cache.cache_folder("made") == tmp_path / "home" / "own" / "made"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTREID_RIB_CACHE", "own")
    assert cache.cache_folder("made") == tmp_path / "own" / "made"


def test_what_is_made_is_trusted_whatever_the_umask(tmp_path):
    folder = tmp_path / "cache" / "made"
    before = os.umask(0)
    try:
        cache.make_folder(folder)
    finally:
        os.umask(before)
    cache.make_folder(folder)  # again does nothing
    assert cache.why_untrusted(folder, folder.parent) is None
    for mode in (0o775, 0o757):
        folder.parent.chmod(mode)
        assert cache.why_untrusted(folder) is None
        reason = cache.why_untrusted(folder, folder.parent)
        assert reason == f"{folder.parent} can be written by others; `chmod go-w` it or delete it"


def test_what_belongs_to_somebody_else_is_not(tmp_path, monkeypatch):
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    expected = None if owner == 0 else f"{tmp_path} belongs to another user; delete it"
    assert cache.why_untrusted(Path(tmp_path)) == expected  # everyone trusts the files of root
