"""What the hub answers, and a download that is there or half there: a backbone, or one sentence."""

import shutil
import socket
import time
from types import SimpleNamespace

import pytest

from fedreft_lib.errors import FedReFTError
from fedreft_lib.model import backbone as module
from fedreft_lib.model.backbone import load_backbone

NAME = "someone/some-model"


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """The tests of the hub's answers are about a hub that may be asked."""
    monkeypatch.setattr(module.constants, "HF_HUB_OFFLINE", False)


def hub_that(answer):
    """A stand-in for the hub's client: the hub itself cannot be part of a test."""

    class Hub:
        def model_info(self, name, timeout):
            raise answer

    return Hub


class OpenHub:
    """A hub that lets everybody read everything."""

    def model_info(self, name, timeout):
        return SimpleNamespace(gated=False)


def answered(kind, status):
    """The error that the hub's client, old or new, makes of an answer of the hub."""
    return kind("the hub's own words", response=SimpleNamespace(status_code=status, headers={}, request=None))


GATED = r"is gated: accept its terms on https://huggingface.co/someone/some-model, then log in with `hf auth login` or"
ANSWERS = [
    (answered(module.GatedRepoError, 401), GATED),  # nobody is logged in
    (answered(module.GatedRepoError, 403), GATED),  # the terms are not accepted
    (
        answered(module.RepositoryNotFoundError, 401),
        "The hub has no model 'someone/some-model' that this user may read",
    ),
    (
        answered(module.RepositoryNotFoundError, 404),
        "The hub has no model 'someone/some-model' that this user may read",
    ),
    (answered(module.HfHubHTTPError, 401), "The hub wants a valid token for someone/some-model"),
    (answered(module.HfHubHTTPError, 403), "The token may not read someone/some-model"),
]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        *ANSWERS,
        (ConnectionError(), "is not on this machine, or not all of it, and the hub cannot be reached"),
        (TimeoutError(), "is not on this machine, or not all of it, and the hub cannot be reached"),
        (
            answered(module.HfHubHTTPError, 503),
            "is not on this machine, or not all of it, and the hub cannot be reached",
        ),
        (module.HFValidationError("no name"), "check the spelling"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(answer, sentence, monkeypatch):
    monkeypatch.setattr(module, "HfApi", hub_that(answer))
    with pytest.raises(FedReFTError, match=sentence) as caught:
        load_backbone(NAME)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("answer", "sentence"), ANSWERS)
def test_what_the_hub_refuses_while_files_are_fetched_is_the_same_sentence(answer, sentence, monkeypatch, hub_cache):
    """transformers wraps the answer, differently in each version."""

    def download(*args, **kwargs):
        raise answer

    monkeypatch.setattr(module, "HfApi", OpenHub)
    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", download)
    shutil.rmtree(hub_cache)
    with pytest.raises(FedReFTError, match=sentence):
        load_backbone(NAME)


def test_a_name_nearly_right_is_answered_with_the_right_one(monkeypatch):
    monkeypatch.setattr(module, "HfApi", hub_that(answered(module.RepositoryNotFoundError, 404)))
    with pytest.raises(FedReFTError, match="may read, did you mean 'meta-llama/Llama-3.2-3B'?"):
        load_backbone("meta-lama/Llama-3.2-3B")


@pytest.fixture
def hub_cache(tmp_path_factory, monkeypatch):
    """The files of a tiny model, as a download of someone/some-model leaves them in the hub's cache."""
    cache = tmp_path_factory.mktemp("hub")
    folder = cache / "models--someone--some-model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    original, snapshot = load_backbone("tiny-llama"), folder / "snapshots" / ("0" * 40)
    original.model.save_pretrained(snapshot)
    original.tokenizer.save_pretrained(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(cache), raising=False)  # 4.45 has its own name
    return snapshot


@pytest.fixture
def no_network(monkeypatch):
    """No address can be found, at once: transformers looks for one more file of a download, again and again."""

    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.mark.usefixtures("no_network")
def test_without_a_network_an_earlier_download_is_used_and_its_size_is_said(hub_cache, monkeypatch, capsys):
    monkeypatch.setattr(module, "HfApi", hub_that(ConnectionError()))
    backbone = load_backbone(NAME, dtype="float32", device="cpu")
    assert backbone.fingerprint == load_backbone("tiny-llama").fingerprint
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{NAME}: 0.000181 B parameters, about 0.0 GiB in float32; ") and "free on cpu" in line


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer*", "config.json"])
def test_a_download_that_was_cut_short_is_one_sentence(hub_cache, monkeypatch, lost):
    for file in hub_cache.glob(lost):
        file.unlink()
    monkeypatch.setattr(module, "HfApi", hub_that(ConnectionError()))
    with pytest.raises(FedReFTError, match="not on this machine, or not all of it, and the hub cannot be reached"):
        load_backbone(NAME)
    monkeypatch.setattr(module.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FedReFTError, match="HF_HUB_OFFLINE forbids to ask the hub"):
        load_backbone(NAME)


def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_read(hub_cache, monkeypatch):
    (hub_cache / "model.safetensors").unlink()
    monkeypatch.setattr("fedreft_lib.model.architectures.free_memory", lambda device: 1000)
    monkeypatch.setattr(module, "HfApi", hub_that(ConnectionError()))
    with pytest.raises(FedReFTError, match="someone/some-model needs about 0.0 GiB in float32, 0.0 GiB are free"):
        load_backbone(NAME, dtype="float32", device="cpu")
