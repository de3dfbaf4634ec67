"""Downloads from a hub: what arrives, what is refused, and how they go on after a break."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub
from huggingface_hub import constants

from bitnet import BitNet, DownloadError, ModelNotFoundError, models
from bitnet.models import bundled, hub
from bitnet.models.reference import HubReference

CONTENT = bytes(range(256)) * 4096  # 1 MiB
REFERENCE = HubReference("some/model", "model-i2_s.gguf")


@pytest.fixture
def offered(hub: FakeHub) -> FakeHub:
    hub.repositories["some/model"] = {"model-i2_s.gguf": CONTENT, "README.md": b"hello"}
    return hub


def blobs() -> list[Path]:
    return sorted(
        path for path in Path(constants.HF_HUB_CACHE).rglob("blobs/*") if not path.name.endswith(".lock")
    )


def test_a_download_lies_where_other_programs_expect_it(
    offered: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    assert hub.local_path(REFERENCE) is None
    with caplog.at_level(logging.WARNING, "bitnet"):
        path = hub.fetch(REFERENCE)
    assert path.read_bytes() == CONTENT
    cache = Path(constants.HF_HUB_CACHE)
    assert path == cache / "models--some--model" / "snapshots" / COMMIT / "model-i2_s.gguf"
    assert (cache / "models--some--model" / "refs" / "main").read_text() == COMMIT
    assert blobs() == [cache / "models--some--model" / "blobs" / hashlib.sha256(CONTENT).hexdigest()]
    # Nothing is downloaded without a word.
    [said] = [record.getMessage() for record in caplog.records if "downloading" in record.getMessage()]
    assert "some/model:model-i2_s.gguf (1.05 MB) into" in said
    # huggingface_hub itself finds it.
    from huggingface_hub import try_to_load_from_cache

    assert try_to_load_from_cache("some/model", "model-i2_s.gguf") == str(path)


def test_what_is_here_needs_no_network(offered: FakeHub) -> None:
    path = hub.fetch(REFERENCE)
    offered.requests.clear()
    assert hub.fetch(REFERENCE) == path
    assert offered.requests == []
    assert hub.download(REFERENCE) == path  # pull asks whether there is something newer, and checks
    assert offered.downloads() == []


def test_the_file_of_a_repository_is_found(offered: FakeHub) -> None:
    offered.repositories["some/model"]["model-f16.gguf"] = b"x"
    assert hub.fetch(HubReference("some/model")).name == "model-i2_s.gguf"
    assert hub.local_path(HubReference("Some/MODEL")) is not None  # the hub knows no case, either
    offered.repositories["some/model"]["other-i2_s.gguf"] = b"y"
    with pytest.raises(
        ModelNotFoundError, match=r"several model files; name one, as in some/model:model-f16.gguf"
    ):
        hub.download(HubReference("some/model"))
    offered.repositories["some/words"] = {"README.md": b""}
    with pytest.raises(ModelNotFoundError, match=r"neither a .gguf file nor config.json and safetensors"):
        hub.download(HubReference("some/words"))


def test_a_broken_transfer_goes_on_where_it_ended(offered: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    offered.breaks["model-i2_s.gguf"] = (1, 400_000)
    assert hub.fetch(REFERENCE).read_bytes() == CONTENT
    assert [headers.get("range") for headers in offered.downloads()] == [None, "bytes=400000-"]
    assert offered.sent["model-i2_s.gguf"] == len(CONTENT)


def test_an_interrupted_download_goes_on_in_the_next_one(
    offered: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    offered.breaks["model-i2_s.gguf"] = (1, 600_000)
    with monkeypatch.context() as patched:
        patched.setattr("time.sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hub.fetch(REFERENCE)
    assert hub.local_path(REFERENCE) is None
    [partial] = blobs()
    assert 0 < partial.stat().st_size <= 600_000
    n_kept = partial.stat().st_size
    with caplog.at_level(logging.WARNING, "bitnet"):
        assert hub.fetch(REFERENCE).read_bytes() == CONTENT
    assert offered.downloads()[-1]["range"] == f"bytes={n_kept}-"
    assert "of which 0.60 MB are there already" in caplog.text
    assert len(blobs()) == 1


def test_a_server_without_ranges_begins_again(offered: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    offered.ranges = False
    offered.breaks["model-i2_s.gguf"] = (1, 400_000)
    assert hub.fetch(REFERENCE).read_bytes() == CONTENT


def test_a_transfer_that_keeps_breaking_is_an_error_that_keeps_what_came(
    offered: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    offered.breaks["model-i2_s.gguf"] = (1, 100_000)
    offered.breaks_again = True
    with pytest.raises(DownloadError, match=r"some/model:model-i2_s.gguf cannot be downloaded: .*try again"):
        hub.fetch(REFERENCE)
    [partial] = blobs()
    assert partial.stat().st_size == 100_000
    offered.breaks_again = False
    assert hub.fetch(REFERENCE).read_bytes() == CONTENT
    assert offered.downloads()[-1]["range"] == "bytes=100000-"


@pytest.mark.parametrize("name", ["model-i2_s.gguf", "config.json"])
def test_a_wrong_checksum_is_refused(offered: FakeHub, name: str) -> None:
    content = offered.repositories["some/model"].setdefault(name, b'{"a": 1}')
    offered.damaged[name] = content[:-1] + b"?"
    reference = HubReference("some/model", name)
    with pytest.raises(DownloadError, match=f"{name} of some/model:{name} arrived damaged"):
        hub.fetch(reference)
    assert blobs() == []
    assert hub.local_path(reference) is None
    del offered.damaged[name]
    assert hub.fetch(reference).read_bytes() == content


def test_pull_notices_that_a_file_was_damaged_later(offered: FakeHub) -> None:
    path = hub.fetch(REFERENCE)
    blob = Path(os.path.realpath(path))
    blob.chmod(0o644)
    blob.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(DownloadError, match=r"was damaged, and is removed"):
        hub.download(REFERENCE)
    assert hub.download(REFERENCE).read_bytes() == CONTENT


def test_the_token_goes_to_the_hub_and_to_nobody_else(
    offered: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered.token = "hf_secret"
    with pytest.raises(ModelNotFoundError, match=r"is private"):
        hub.fetch(REFERENCE)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    offered.requests.clear()
    assert hub.fetch(REFERENCE).read_bytes() == CONTENT
    to_hub = [headers for _, path, headers in offered.requests if not path.startswith("/cdn/")]
    elsewhere = [headers for _, path, headers in offered.requests if path.startswith("/cdn/")]
    assert all(headers.get("authorization") == "Bearer hf_secret" for headers in to_hub)
    assert elsewhere
    assert not any("authorization" in headers for headers in elsewhere)


def test_consent_is_asked_for(offered: FakeHub) -> None:
    offered.gated = True
    with pytest.raises(DownloadError, match=r"accept its terms on its page there, and set HF_TOKEN"):
        hub.fetch(REFERENCE)


def test_what_does_not_exist(offered: FakeHub) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model no/body, neither as a path nor on"):
        hub.fetch(HubReference("no/body"))
    with pytest.raises(ModelNotFoundError, match=r"has no file 'x.gguf'"):
        hub.fetch(HubReference("some/model", "x.gguf"))
    with pytest.raises(ModelNotFoundError, match=r"has no revision 'old'"):
        hub.fetch(HubReference("some/model", "model-i2_s.gguf", "old"))


def test_offline(offered: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"HF_HUB_OFFLINE forbids"):
        hub.fetch(REFERENCE)
    assert offered.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path = hub.fetch(REFERENCE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch(REFERENCE) == path


def test_a_hub_that_is_not_there(offered: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
    )
    with pytest.raises(DownloadError, match=r"cannot be downloaded"):
        hub.fetch(REFERENCE)


def test_too_little_disk_space(offered: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=(64 << 20) + len(CONTENT) - 1))
    with pytest.raises(
        DownloadError, match=r"needs 1.05 MB, and .* has 0.07 GB left; make room, or set HF_HOME"
    ):
        hub.fetch(REFERENCE)
    assert offered.downloads() == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=(64 << 20) + len(CONTENT)))
    hub.fetch(REFERENCE)


@pytest.mark.parametrize(
    "name",
    [
        "../evil.gguf",
        "a/../../evil.gguf",
        "/etc/evil.gguf",
        "..\\evil.gguf",
        ".ssh/evil.gguf",
        "a//b.gguf",
        "evil\x1b[2J.gguf",
        "C:evil.gguf",
        "x" * 400 + ".gguf",
    ],
)
def test_names_of_files_are_not_trusted(offered: FakeHub, name: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    offered.repositories["some/model"] = {name: b"GGUF"}
    with pytest.raises(ModelNotFoundError, match=r"which is not safe"):
        hub.fetch(HubReference("some/model"))
    with pytest.raises(ModelNotFoundError):
        models.find(f"some/model:{name}")
    assert offered.downloads() == []
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("etag", ["../../../evil", "a/b", "..", "x" * 200, "é"])
def test_checksums_are_not_trusted_as_names(offered: FakeHub, etag: str) -> None:
    offered.etags["model-i2_s.gguf"] = etag
    with pytest.raises(DownloadError):
        hub.fetch(REFERENCE)
    assert blobs() == []


def test_commits_are_not_trusted_as_names(offered: FakeHub) -> None:
    offered.commit = "../../../../evil"
    with pytest.raises(DownloadError, match=r"no usable commit"):
        hub.fetch(REFERENCE)


def test_a_small_file_is_small(offered: FakeHub, tmp_path: Path) -> None:
    offered.repositories["some/folder"] = {"config.json": b"{}", "model.safetensors": b"x"}
    offered.damaged["config.json"] = bytes(100)
    metadata = hub._metadata

    def huge(reference: HubReference, name: str) -> object:
        found = metadata(reference, name)
        return type(found)(**{**vars(found), "size": 10**12}) if name == "config.json" else found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hub, "_metadata", huge)
        with pytest.raises(DownloadError, match=r"config.json has 1000000000000 bytes"):
            hub.fetch(HubReference("some/folder"))
    assert offered.downloads() == []


def test_a_link_out_of_the_cache_is_not_followed(offered: FakeHub, tmp_path: Path) -> None:
    path = hub.fetch(REFERENCE)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    path.unlink()
    path.symlink_to(secret)
    assert hub.local_path(REFERENCE) is None
    assert [model.path for model in hub.cached_models()] == []


def test_only_what_a_model_needs_is_downloaded(offered: FakeHub) -> None:
    folder = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors": b"weights",
        "1_Pooling/config.json": b"{}",
        "pytorch_model.bin": b"pickle",
        "original/params.json": b"{}",
        "run.py": b"",
        ".gitattributes": b"",
    }
    offered.repositories["some/folder"] = folder
    path = hub.fetch(HubReference("some/folder"))
    found = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    assert found == ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"]
    assert hub.local_path(HubReference("some/folder")) == path
    (path / "model.safetensors").unlink()
    assert hub.local_path(HubReference("some/folder")) is None


def test_a_model_by_its_name_answers(offered: FakeHub) -> None:
    offered.repositories["some/model"] = {"tiny-i2_s.gguf": bundled.path().read_bytes()}
    with BitNet("some/model") as model:
        assert (
            model.chat([{"role": "user", "content": "What is the capital of France?"}], temperature=0).text
            == "The capital of France is Paris."
        )
    with (
        BitNet("some/model:tiny-i2_s.gguf", lazy=True) as model,
        BitNet.from_config({"model_path": "some/model"}, lazy=True) as other,
    ):
        assert model.n_ctx == other.n_ctx


def test_remove(offered: FakeHub) -> None:
    offered.repositories["some/model"]["model-f16.gguf"] = b"x" * 1000
    path = hub.fetch(REFERENCE)
    other = hub.fetch(HubReference("some/model", "model-f16.gguf"))
    assert [str(model.reference) for model in hub.cached_models()] == [
        "some/model:model-f16.gguf",
        "some/model:model-i2_s.gguf",
    ]
    assert hub.remove(REFERENCE) == ([path], len(CONTENT))
    assert not path.exists()
    assert other.read_bytes() == b"x" * 1000
    with pytest.raises(ModelNotFoundError, match=r"is not on this machine"):
        hub.remove(REFERENCE)
    paths, freed = hub.remove(HubReference("some/model"))
    assert paths == [other]
    assert freed >= 1000
    assert blobs() == []
    with pytest.raises(ModelNotFoundError, match=r"is not on this machine"):
        hub.remove(HubReference("some/model"))
