"""A federation is a matrix: nothing is lost between named tensors, rows of X, and files."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedreft_lib.core.interventions import INTERVENTIONS
from fedreft_lib.core.state import Spec
from fedreft_lib.errors import FedReFTError
from fedreft_lib.files import load_tensors, save_tensors, write_text

SHAPES = {"R": (3, 2, 5), "W": (3, 2, 5), "b": (3, 2)}


def draw(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@settings(deadline=None)
@given(st.sampled_from(sorted(INTERVENTIONS)), st.integers(1, 4), st.integers(1, 4), st.integers(4, 9))
def test_a_row_and_its_named_tensors_are_the_same_numbers(name, sites, rank, d):
    shapes = INTERVENTIONS[name].shapes(sites, rank, d)
    spec, state = Spec.of(shapes), draw(shapes)
    row = spec.row(state)
    assert row.shape == (spec.size,) and row.dtype == torch.float32
    assert np.array_equal(row.numpy(), np.concatenate([state[n].numpy().ravel() for n in shapes]))
    again = spec.named(row)
    assert list(again) == list(state) and all(torch.equal(again[n], state[n]) for n in state)


def test_named_tensors_are_views_and_a_row_is_a_copy():
    spec, state = Spec.of(SHAPES), draw(SHAPES)
    row = spec.row(state)
    state["b"][0, 0] = 99.0
    assert 99.0 not in row
    spec.named(row)["b"][0, 0] = 7.0
    assert row[-6] == 7.0


def test_a_row_carries_no_gradient():
    state = {name: tensor.requires_grad_() for name, tensor in draw(SHAPES).items()}
    assert not Spec.of(SHAPES).row(state).requires_grad


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: s.pop("b"), "must have the tensors"),
        (lambda s: s.update(extra=torch.zeros(1)), "must have the tensors"),
        (lambda s: s.update(W=torch.zeros(3, 5, 2)), r"W must have the shape \(3, 2, 5\), got \(3, 5, 2\)"),
        (lambda s: s.update(b=torch.zeros(1, 2)), "b must have the shape"),  # would broadcast
    ],
)
def test_a_state_that_does_not_fit_the_spec_is_refused(spoil, said):
    state = draw(SHAPES)
    spoil(state)
    with pytest.raises(FedReFTError, match=said):
        Spec.of(SHAPES).row(state)


def test_a_row_of_another_length_is_refused():
    with pytest.raises(RuntimeError):
        Spec.of(SHAPES).named(torch.zeros(Spec.of(SHAPES).size + 1))


# ---- files ----------------------------------------------------------------------------------------------------------


def test_tensors_survive_a_file_to_the_bit(tmp_path):
    tensors = draw(SHAPES) | {
        "odd": torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-45]),
        "empty": torch.zeros(0, 4, 4),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.randn(3).bfloat16(),
    }
    save_tensors(tensors, tmp_path / "x.safetensors")
    again, _ = load_tensors(tmp_path / "x.safetensors")
    assert set(again) == set(tensors)
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype and again[name].shape == tensor.shape
        same = again[name].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8)
        assert torch.equal(*same), name


@pytest.mark.parametrize("content", [None, b"", b"torn", b"\xff" * 100], ids=["missing", "empty", "torn", "garbage"])
def test_a_missing_or_damaged_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FedReFTError, match="cannot be read as safetensors") as error:
        load_tensors(path)
    assert "x.safetensors" in str(error.value)


def test_a_cut_off_file_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(draw(SHAPES), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FedReFTError):
        load_tensors(path)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_no_flipped_bit_of_a_file_goes_unnoticed(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("flip") / "x.safetensors"
    save_tensors({"a": torch.arange(6.0), "b": torch.zeros(2, 3, dtype=torch.bfloat16)}, path, {"note": "of the file"})
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        tensors, notes = load_tensors(path)
    except FedReFTError as error:
        assert "\n" not in str(error)
    else:  # white space of the header may change, nothing that is read
        assert torch.equal(tensors["a"], torch.arange(6.0)) and notes == {"note": "of the file"}


def test_a_pickle_under_the_name_is_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "burnt").touch, ()

    path = tmp_path / "x.safetensors"
    torch.save({"a": Bomb()}, path)
    with pytest.raises(FedReFTError, match="cannot be read as safetensors"):
        load_tensors(path)
    assert not (tmp_path / "burnt").exists()


class PowerCutError(Exception):
    pass


@pytest.mark.parametrize("moment", ["os.fsync", "os.replace"])
def test_a_write_that_is_interrupted_leaves_the_old_file_whole(tmp_path, monkeypatch, moment):
    tensors, text = tmp_path / "x.safetensors", tmp_path / "x.json"
    save_tensors({"a": torch.ones(3)}, tensors)
    write_text(text, "old")

    def cut(*args):
        raise PowerCutError

    with monkeypatch.context() as patched:
        patched.setattr(moment, cut)
        with pytest.raises(PowerCutError):
            save_tensors({"a": torch.zeros(3)}, tensors)
        with pytest.raises(PowerCutError):
            write_text(text, "new")
    assert torch.equal(load_tensors(tensors)[0]["a"], torch.ones(3)) and text.read_text() == "old"
    save_tensors({"a": torch.zeros(3)}, tensors)  # what the interrupted write left behind is in nobody's way
    write_text(text, "new")
    assert torch.equal(load_tensors(tensors)[0]["a"], torch.zeros(3)) and text.read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "x.safetensors"]


def test_a_part_keeps_the_order_of_the_whole():
    spec = Spec.of({"b": (1,), "R": (2,), "a": (3,)})
    assert spec.part(["a", "b"]).names == ("b", "a")
