"""Packed weights between loads: where they lie, that they are used, and that a bad place never is an
error."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bitnet import BitNet, _native
from bitnet.models import weight_cache

posix_only = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache" / "nested"
    monkeypatch.setenv("BITNET_CACHE_DIR", str(folder))
    return folder


def test_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("BITNET_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert weight_cache.directory() == tmp_path / ".cache" / "bitnet-cpp"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert weight_cache.directory() == tmp_path / "Library" / "Caches" / "bitnet-cpp"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert weight_cache.directory() == tmp_path / "Library" / "Caches" / "bitnet-cpp"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/xdg")
    assert weight_cache.directory() == Path("/var/xdg/bitnet-cpp")
    monkeypatch.setenv("BITNET_CACHE_DIR", "/var/own")
    assert weight_cache.directory() == Path("/var/own")


def test_small_models_are_not_cached(cache: Path, random_path: Path) -> None:
    assert weight_cache.path_for(random_path) == ""
    BitNet(random_path).close()
    assert not cache.exists()


def test_one_file_for_each_real_path(cache: Path, random_path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link to model.gguf"
    link.symlink_to(random_path)
    direct, linked = (Path(weight_cache.path_for(path, min_bytes=0)) for path in (random_path, link))
    assert direct.parent == cache
    assert direct.name.startswith(random_path.stem)
    assert direct.name.split("-")[-1] == linked.name.split("-")[-1]
    assert linked.name.startswith("link_to_model-")
    copy = tmp_path / random_path.name
    copy.write_bytes(random_path.read_bytes())
    assert Path(weight_cache.path_for(copy, min_bytes=0)) != direct


@posix_only
def test_only_the_user_may_look_into_the_directory(cache: Path, random_path: Path) -> None:
    weight_cache.path_for(random_path, min_bytes=0)
    assert cache.stat().st_mode & 0o777 == 0o700


def load(path: Path, cache_path: str) -> tuple[_native.Model, bytes]:
    model = _native.Model(_native.ModelFile(str(path)), cache_path=cache_path)
    runner = _native.Runner(model, n_blocks=1)
    runner.forward(np.array([1, 2, 3], np.int32), [[0]], [0], [3], [2])
    return model, runner.logits().tobytes()


def test_the_second_load_comes_from_the_cache(cache: Path, random_path: Path) -> None:
    cache_path = weight_cache.path_for(random_path, min_bytes=0)
    packed, logits = load(random_path, cache_path)
    assert not packed.from_cache
    assert Path(cache_path).is_file()
    mapped, same_logits = load(random_path, weight_cache.path_for(random_path, min_bytes=0))
    assert mapped.from_cache
    assert same_logits == logits == load(random_path, "")[1]


def test_a_changed_source_is_packed_again(cache: Path, random_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "changing.gguf"
    path.write_bytes(random_path.read_bytes())
    load(path, weight_cache.path_for(path, min_bytes=0))
    os.utime(path, ns=(1, 1))
    assert not load(path, weight_cache.path_for(path, min_bytes=0))[0].from_cache
    assert load(path, weight_cache.path_for(path, min_bytes=0))[0].from_cache


def test_a_damaged_cache_is_replaced(cache: Path, random_path: Path) -> None:
    cache_path = Path(weight_cache.path_for(random_path, min_bytes=0))
    _, logits = load(random_path, str(cache_path))
    whole = cache_path.read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2], b"\0" * 64 + whole[64:]):
        cache_path.unlink()
        cache_path.write_bytes(damaged)
        model, same_logits = load(random_path, str(cache_path))
        assert not model.from_cache
        assert same_logits == logits
        assert cache_path.read_bytes() == whole


@posix_only
def test_unusable_directories_mean_no_cache(
    monkeypatch: pytest.MonkeyPatch, random_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing/here")):
        monkeypatch.setenv("BITNET_CACHE_DIR", str(place))
        assert weight_cache.path_for(random_path, min_bytes=0) == ""
    public = tmp_path / "public"
    public.mkdir()
    public.chmod(0o777)
    monkeypatch.setenv("BITNET_CACHE_DIR", str(public))
    assert weight_cache.path_for(random_path, min_bytes=0) == ""
    assert f"anybody may write to {public}" in caplog.text


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_read(
    monkeypatch: pytest.MonkeyPatch, random_path: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("BITNET_CACHE_DIR", str(tmp_path))
    cache_path = weight_cache.path_for(random_path, min_bytes=0)
    tmp_path.chmod(0o500)
    assert weight_cache.path_for(random_path, min_bytes=0) == ""
    tmp_path.chmod(0o700)
    load(random_path, cache_path)
    tmp_path.chmod(0o500)
    assert weight_cache.path_for(random_path, min_bytes=0) == cache_path
    tmp_path.chmod(0o700)


def test_what_nobody_uses_goes(cache: Path, random_path: Path) -> None:
    cache_path = Path(weight_cache.path_for(random_path, min_bytes=0))
    old = time.time() - weight_cache.UNUSED_SECONDS - 60
    used, unused, leftover, foreign = (
        cache_path,
        cache / "gone-1234.packed",
        cache / "gone-1234.packed.tmp77",
        cache / "notes.txt",
    )
    for file in (used, unused, leftover, foreign):
        file.write_bytes(b"x")
        os.utime(file, (old, old))
    assert weight_cache.path_for(random_path, min_bytes=0) == str(used)
    assert sorted(cache.iterdir()) == sorted([used, foreign])
    assert used.stat().st_mtime > old
