"""Where interventions act, and that they leave the model as they found it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedreft_lib.core.interventions import LoReFT
from fedreft_lib.core.notation import parse_layers, parse_positions
from fedreft_lib.core.sites import Sites, intervene
from fedreft_lib.errors import ConfigError
from fedreft_lib.model.tokens import Tokens
from tests.helpers.models import random_backbone, random_state, steered


@pytest.mark.parametrize(
    ("text", "expected"), [("f7+l7", (7, 7)), ("f3", (3, 0)), ("l1", (0, 1)), ("f11+l0", (11, 0)), ("f1+l12", (1, 12))]
)
def test_positions_are_read_in_pyrefts_notation(text, expected):
    assert parse_positions(text) == expected


@pytest.mark.parametrize("text", ["", "+", "f0", "f0+l0", "7", "l7+f7", "f-1", "f1.5", "F7", " f7", "f7 + l7", "f"])
def test_other_positions_are_refused(text):
    with pytest.raises(ConfigError, match="positions must read like"):
        parse_positions(text)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("all", (0, 1, 2, 3, 4)), ("0-4", (0, 1, 2, 3, 4)), ("1-3", (1, 2, 3)), ("4-4", (4,)), ([0, 4], (0, 4))],
)
def test_layers_are_all_a_range_with_both_ends_or_a_list(layers, expected):
    assert parse_layers(layers, 5) == expected


@pytest.mark.parametrize("layers", ["", "some", "3-1", "2-5", "1,2", [5], [-1], [], [2, 2], [3, 1]])
def test_other_layers_are_refused(layers):
    with pytest.raises(ConfigError, match="layers must be"):
        parse_layers(layers, 5)


# ---- the rule for short prompts -------------------------------------------------------------------------------------


def by_the_rule(n, p, s):
    """ReFT paper: the first p and the last s tokens; if n < p + s, p <- min(p, floor(n/2)), s <- min(s, ceil(n/2))."""
    if n < p + s:
        p, s = min(p, n // 2), min(s, n - n // 2)
    return list(range(p)), list(range(n - s, n))


@pytest.mark.parametrize("left", [False, True], ids=["right-padded", "left-padded"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("p", "s"), [(7, 7), (5, 5), (1, 0), (0, 3), (3, 0), (2, 9), (11, 1), (1, 1)])
def test_positions_follow_the_papers_rule_for_all_prompts_of_1_to_30_tokens(p, s, tied, left):
    lengths, answer = list(range(1, 31)), 4  # answer tokens follow each prompt
    width = max(lengths) + answer + 3
    starts = [width - n - answer if left else 0 for n in lengths]
    sites = Sites((0,), p, s, tied)
    found = sites.positions(torch.tensor(lengths), torch.tensor(starts), (len(lengths), width))
    expected = {"prefix": [], "suffix": []}
    for row, (n, start) in enumerate(zip(lengths, starts, strict=True)):
        for group, places in zip(expected, by_the_rule(n, p, s), strict=True):
            expected[group] += [row * width + start + i for i in places]
    if tied and p and s:
        expected = {"tied": expected["prefix"] + expected["suffix"]}
    assert {group: index.tolist() for group, index in found.indices.items()} == {
        group: places for group, places in expected.items() if group in sites.groups
    }


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 12), st.integers(0, 12), st.booleans(),
    st.integers(0, 5),
)  # fmt: skip
def test_no_position_is_edited_twice_and_none_is_outside_the_prompt(lengths, p, s, tied, extra):
    if p + s == 0:
        return
    width = max(lengths) + extra
    starts = [(i * 7) % (width - n + 1) for i, n in enumerate(lengths)]
    sites = Sites((0,), p, s, tied)
    found = sites.positions(torch.tensor(lengths), torch.tensor(starts), (len(lengths), width))
    flat = torch.cat(list(found.indices.values())).tolist()
    assert len(flat) == len(set(flat))
    for index in flat:
        row, column = divmod(index, width)
        assert starts[row] <= column < starts[row] + lengths[row]


@pytest.mark.parametrize(
    ("prefix", "suffix", "tied", "groups"),
    [
        (2, 2, False, ("prefix", "suffix")),
        (2, 2, True, ("tied",)),
        (2, 0, True, ("prefix",)),
        (0, 2, False, ("suffix",)),
    ],
)
def test_sites_are_counted_and_stacked_in_pyrefts_order(prefix, suffix, tied, groups):
    sites = Sites((1, 4, 5), prefix, suffix, tied)
    assert sites.groups == groups and len(sites) == 3 * len(groups)
    assert [sites.index(layer, group) for group in groups for layer in (1, 4, 5)] == list(range(len(sites)))


# ---- hooks ----------------------------------------------------------------------------------------------------------


class Blocks(nn.Module):
    """Three blocks that add one; each returns a tensor or a tuple, as transformers does after and before 4.54."""

    def __init__(self, tuples=False):
        super().__init__()
        self.tuples = tuples
        self.layers = nn.ModuleList([nn.Identity() for _ in range(3)])
        if tuples:
            self.layers = nn.ModuleList([_ReturnsTuple() for _ in range(3)])

    def forward(self, h):
        for layer in self.layers:
            out = layer(h + 1)
            h = out[0] if self.tuples else out
        return h


class _ReturnsTuple(nn.Module):
    def forward(self, h):
        return h, "attention"


def draw(*shape):
    """Whole numbers, so that adding 1 three times is adding 3 to the bit."""
    return torch.randint(-9, 9, shape).float()


def hooks(layers):
    return sum(len(layer._forward_hooks) for layer in layers)


def steer(blocks, layers=(0, 2)):
    """A state for the first and the last of 5 tokens in two rows, and the context in which it steers."""
    sites = Sites(layers, 1, 1)
    state = LoReFT.init(len(sites), 2, 4, start="random", generator=torch.Generator().manual_seed(0))
    positions = sites.positions(torch.tensor([5, 5]), torch.tensor([0, 0]), (2, 5))
    return state, intervene(blocks.layers, LoReFT, state, sites, positions)


@pytest.mark.parametrize("tuples", [False, True], ids=["tensor", "tuple"])
def test_each_site_edits_its_positions_and_nothing_else(tuples):
    blocks, h = Blocks(tuples), draw(2, 5, 4)
    state, steering = steer(blocks)
    with steering:
        found = blocks(h)
    expected = h.clone()
    for layer in range(3):
        expected = expected + 1
        for site, place in {0: {0: 0, 2: -1}, 2: {1: 0, 3: -1}}.get(layer, {}).items():  # prefix sites come first
            x, R, W, b = expected[:, place], state["R"][site], state["W"][site], state["b"][site]
            expected[:, place] = x + (x @ W.T + b - x @ R.T) @ R
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found[:, 0], h[:, 0] + 3) and torch.equal(found[:, 2], h[:, 2] + 3)


def test_the_hooks_are_gone_afterwards_also_after_an_error():
    blocks, h = Blocks(), draw(2, 5, 4)
    _, steering = steer(blocks)
    with steering:
        assert hooks(blocks.layers) == 2
        blocks(h)
    assert hooks(blocks.layers) == 0
    _, steering = steer(blocks)
    with pytest.raises(RuntimeError, match="stop"), steering:
        raise RuntimeError("stop")
    assert hooks(blocks.layers) == 0
    assert torch.equal(blocks(h), h + 3)


def test_no_hook_stays_where_a_layer_does_not_exist():
    blocks = Blocks()
    _, steering = steer(blocks, layers=(0, 7))
    with pytest.raises(IndexError), steering:
        pass
    assert hooks(blocks.layers) == 0


def test_a_second_forward_pass_in_the_same_context_is_not_steered():
    blocks, h = Blocks(), draw(2, 5, 4)
    _, steering = steer(blocks)
    with steering:
        assert not torch.equal(blocks(h), h + 3)
        assert torch.equal(blocks(h), h + 3)
        assert torch.equal(blocks(torch.zeros(2, 1, 4)), torch.full((2, 1, 4), 3.0))  # the shape of a decoding step


@pytest.mark.parametrize("shape", [(2, 6, 4), (1, 5, 4), (3, 5, 4), (5, 2, 4)])
def test_a_batch_of_another_shape_than_the_positions_raises(shape):
    blocks = Blocks()
    _, steering = steer(blocks)
    with pytest.raises(ValueError, match=r"positions are for a batch of \(2, 5\)"), steering:
        blocks(draw(*shape))
    assert hooks(blocks.layers) == 0


@pytest.mark.parametrize("sites", [2, 8])
def test_a_state_with_another_number_of_sites_raises(sites):
    model = steered(random_backbone(), LoReFT)
    state = {name: tensor.repeat(2, *[1] * (tensor.dim() - 1))[:sites] for name, tensor in random_state(model).items()}
    with pytest.raises(ValueError, match=f"a state for {sites} sites cannot steer 4"):
        model.hidden_states(model.batch([Tokens((5, 6, 7, 8, 9), 5)]), state)
