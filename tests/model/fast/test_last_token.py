"""Questions read at their prompts' last tokens alone give what whole texts give: scores, gradients, rounds and runs."""

from dataclasses import replace

import pytest
import torch

from fedreft_lib import RunConfig
from fedreft_lib.core.interventions import INTERVENTIONS, LoReFT
from fedreft_lib.core.sites import Sites
from fedreft_lib.data.grading.calibration import calibrated_nll
from fedreft_lib.errors import ConfigError
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.methods import METHODS
from fedreft_lib.methods.branches import Blend
from fedreft_lib.methods.lora import LoRA
from fedreft_lib.model.adapters import AtSites, InLinears
from fedreft_lib.model.backbone import load_backbone
from fedreft_lib.model.encoding import ChoiceSet
from fedreft_lib.model.fast import last_token
from fedreft_lib.model.fast.last_token import LastTokens, reads
from fedreft_lib.model.fast.packed_attention import GIVEN, install
from fedreft_lib.model.scoring import calibrated_losses
from fedreft_lib.model.steered import SteeredModel
from fedreft_lib.model.tokens import Tokens
from fedreft_lib.model.ways import Ways
from tests.helpers.federations import agreeing, fresh, rows, together
from tests.helpers.models import random_backbone, steered
from tests.model.test_steered import other_backbone

pytestmark = pytest.mark.skipif(not GIVEN, reason="this transformers takes no attention from outside: nothing is kept")

SHAPES = [(12, 2), (1, 3), (5, 4), (20, 2), (3, 5), (1, 2), (20, 3)]  # tokens of a prompt, number of its options
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def questions(model, shapes=SHAPES, seed=0) -> ChoiceSet:
    """Questions of random tokens, whose options are one token each, with their hidden states."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for n, options in shapes:
        ids = torch.randperm(245, generator=generator)[: n + options] + 5
        made.append(Tokens(tuple(ids.tolist()), n, (1,) * options))
    gold = [int(torch.randint(options, (1,), generator=generator)) for _, options in shapes]
    characters = [torch.ones(options, dtype=torch.long) for _, options in shapes]
    return ChoiceSet(made, model.hidden_below(made), characters, gold, ["made up"] * len(made), [()] * len(made))


def kept(model, data: ChoiceSet) -> ChoiceSet:
    assert reads(model, data.sequences)
    tokens = LastTokens(model, data.sequences, data.hidden)
    return replace(data, last=[(tokens, i) for i in range(len(data))])


def whole(data: ChoiceSet) -> ChoiceSet:
    """The same questions, read from their first token on in every block."""
    return replace(data, hidden=None)


def moved_state(model, seed=1):
    """A random state, far enough from the identity for its edits to matter."""
    state = model.start("random", seed)
    generator = torch.Generator().manual_seed(seed + 100)
    return {name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}


def test_the_calibrated_losses_of_several_states_are_those_of_each_by_itself_and_of_whole_texts():
    model = steered(random_backbone(), LoReFT, layers=(1, 2), prefix=0, suffix=1)
    data = questions(model)
    states = [moved_state(model, seed) for seed in (1, 2, 3)]
    expected = []
    for state in states:
        of_items = [data.option_scores(model, [i], state)[0].double().numpy() for i in range(len(data))]
        expected.append(calibrated_nll(of_items, data.gold).mean())
    assert max(expected) - min(expected) > 1e-3
    for read in (kept(model, data), data, whole(data)):
        assert calibrated_losses(model, states, read, 2) == pytest.approx(expected, abs=2e-4)


def losses_and_gradients(model, data, state, **how):
    phi = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    losses = data.losses(model, range(len(data)), phi, **how)
    weights = torch.arange(1.0, len(losses) + 1)  # so that no row can stand for another
    return losses.detach(), dict(
        zip(phi, torch.autograd.grad((losses * weights).sum(), list(phi.values())), strict=True)
    )


def same_as_whole(model, data, state, **how):
    found, gradients = losses_and_gradients(model, kept(model, data), state, **how)
    expected, theirs = losses_and_gradients(model, whole(data), state, **how)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert float(expected.std()) > 0.1
    for name, gradient in theirs.items():
        assert float(gradient.abs().max()) > 1e-3, name
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5 * float(gradient.abs().max()) + 2e-5, rtol=1e-3)


def backbone_of(kind):
    if kind == "llama":
        return random_backbone(layers=4)
    backbone = other_backbone(random_backbone(layers=4), kind, **({"head_dim": 8} if kind == "Qwen3" else {}))
    install(backbone.model)
    return backbone


# ---- one pass -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(1,), (3,), (1, 2, 3), (2, 3), (1, 3)], ids=str)
def test_scores_and_gradients_are_those_of_whole_texts(layers):
    model = steered(random_backbone(layers=4), LoReFT, layers=layers, prefix=0, suffix=1)
    same_as_whole(model, questions(model), moved_state(model))


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Mistral"])
def test_they_are_so_for_every_model_that_is_like_llama(kind):
    model = steered(backbone_of(kind), LoReFT, layers=(1, 2), prefix=0, suffix=1)
    same_as_whole(model, questions(model), moved_state(model))


def test_they_are_so_where_heads_share_keys(decoder):
    backbone = load_backbone(decoder, dtype="float32")
    assert backbone.model.config.num_key_value_heads < backbone.model.config.num_attention_heads
    model = steered(backbone, LoReFT, layers=(1, 2), prefix=0, suffix=1)
    same_as_whole(model, questions(model), moved_state(model))


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_they_are_so_for_every_intervention(name):
    model = steered(random_backbone(), INTERVENTIONS[name], layers=(1, 2), prefix=0, suffix=1)
    same_as_whole(model, questions(model), moved_state(model))


def test_prompts_of_one_token_have_nothing_before_them():
    model = steered(random_backbone(), LoReFT, layers=(1, 2), prefix=0, suffix=1)
    same_as_whole(model, questions(model, [(1, 2), (1, 3), (1, 2)]), moved_state(model))


def test_more_prompts_than_a_pass_keeps_and_any_choice_of_them(monkeypatch):
    monkeypatch.setattr(last_token, "AT_ONCE", 3)
    model = steered(random_backbone(), LoReFT, layers=(1, 2), prefix=0, suffix=1)
    data, state = questions(model), moved_state(model)
    same_as_whole(model, data, state)
    some = [5, 0, 3, 0, 6]
    found = kept(model, data).option_scores(model, some, state)  # (5, 5), since the longest have five options
    expected = whole(data).option_scores(model, some, state).float()  # (5, 3)
    torch.testing.assert_close(found.log_softmax(-1)[:, :3], expected.log_softmax(-1), **CLOSE)
    subset = kept(model, data).subset(some)
    assert torch.equal(subset.option_scores(model, range(5), state), found)


def test_the_untrained_model_is_read_so_too():
    model = steered(random_backbone(), LoReFT, layers=(1, 2), prefix=0, suffix=1)
    data = questions(model)
    found, expected = (each.option_scores(model, range(len(data)), None) for each in (kept(model, data), whole(data)))
    torch.testing.assert_close(found.log_softmax(-1), expected.float().log_softmax(-1), **CLOSE)
    assert [row.isfinite().sum().item() for row in found] == [options for _, options in SHAPES]


def test_each_row_has_the_state_of_its_owner_and_reaches_no_other():
    model = steered(random_backbone(), LoReFT, layers=(1, 2), prefix=0, suffix=1)
    data, states = questions(model), [moved_state(model, seed) for seed in (1, 2, 3)]
    owners = torch.tensor([2, 0, 0, 2, 0, 2, 0])  # nobody has state 1
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    same = replace(data, last=kept(model, data).last)
    phi = {name: tensor.clone().requires_grad_() for name, tensor in stacked.items()}
    losses = same.losses(model, range(7), phi, owners=owners)
    for row, k in enumerate(owners.tolist()):
        torch.testing.assert_close(losses[row], whole(data).losses(model, [row], states[k])[0], **CLOSE)
    for gradient in torch.autograd.grad(losses[owners == 2].sum(), list(phi.values())):
        assert gradient[2].abs().max() > 1e-3 and not gradient[:2].any()


def test_each_row_has_its_own_share_of_the_local_branch():
    sites = Sites((1, 2), prefix=0, suffix=1)
    model = SteeredModel(random_backbone(), AtSites(Blend(LoReFT, 0.3), sites, 4, 32))
    data, state = questions(model), moved_state(model)
    every = torch.linspace(0, 1, len(data))
    for share in (None, 0.0, 0.7, every):
        found, expected = (
            each.losses(model, range(len(data)), state, share=share) for each in (kept(model, data), whole(data))
        )
        torch.testing.assert_close(found, expected, **CLOSE)
    some = [4, 1]
    alone = kept(model, data).losses(model, some, state, share=every)
    torch.testing.assert_close(alone, found[some], **CLOSE)


@pytest.mark.parametrize("kind", ["llama", "Qwen2"])
def test_in_bfloat16_it_is_as_close_to_the_exact_values_as_whole_texts_are(kind):
    rough, exact = (backbone_of(kind) for _ in range(2))
    rough.model.to(torch.bfloat16)
    exact.model.load_state_dict({name: tensor.float() for name, tensor in rough.model.state_dict().items()})
    model, other = (steered(each, LoReFT, layers=(1, 2), prefix=0, suffix=1) for each in (rough, exact))
    shapes = [(n, 2 + n % 3) for n in range(1, 41)]
    data, state = questions(model, shapes), model.start("random", 1)
    wanted, their = losses_and_gradients(other, replace(data, hidden=None), state)
    away = []
    for each in (kept(model, data), data, whole(data)):
        found, gradients = losses_and_gradients(model, each, state)
        away.append([float((found - wanted).square().mean().sqrt())])
        away[-1] += [float((gradients[n] - g).norm() / g.norm()) for n, g in their.items()]
    for ours, cached, theirs in zip(*away, strict=True):
        assert 0 < ours < 1.5 * max(cached, theirs)


# ---- where it cannot be ---------------------------------------------------------------------------------------------


def test_what_can_be_read_so_and_what_cannot(monkeypatch):
    backbone = random_backbone()
    model = steered(backbone, LoReFT, layers=(1, 2), prefix=0, suffix=1)
    sequences = questions(model).sequences
    assert reads(model, sequences) and reads(
        steered(backbone, LoReFT, layers=(1,), prefix=0, suffix=1, tied=True), sequences
    )

    def adapted(**how):
        return steered(backbone, LoReFT, **{"layers": (1, 2), "prefix": 0, "suffix": 1, **how})

    assert not reads(adapted(prefix=1), sequences) and not reads(adapted(suffix=2), sequences)
    assert not reads(adapted(prefix=1, suffix=0), sequences)
    assert not reads(adapted(layers=(0, 2)), sequences)  # nothing is below
    lora = SteeredModel(backbone, InLinears.of(backbone, LoRA(2.0), (1, 2), 2, ("q_proj",)))
    assert not reads(lora, sequences)
    assert not reads(model, [])
    assert not reads(model, [*sequences, Tokens((5, 6, 7, 8, 9), 2, (1, 2))])  # an option of two tokens
    assert not reads(model, [*sequences, Tokens((5, 6, 7), 3)])  # a prompt alone
    for ways in (Ways("together"), Ways("apart"), Ways("alone"), Ways("packed", bare=False)):
        assert not reads(model.read_by(ways), sequences)
    assert reads(model.read_by(Ways("packed")), sequences)
    monkeypatch.setattr(last_token, "LARGEST", 1000)
    assert not reads(model, sequences)


def test_the_room_that_is_asked_for_is_what_is_kept(monkeypatch, decoder):
    for backbone in (random_backbone(), load_backbone(decoder, dtype="float32")):
        model = steered(backbone, LoReFT, layers=(1,), prefix=0, suffix=1)
        data = questions(model, [(12, 2)] * 9)
        tokens = LastTokens(model, data.sequences, data.hidden)
        size = sum(x.nbytes for of in (tokens.keys, tokens.values) for x in of.values())
        asked = size * 12 // 11  # one token of each prompt more than is kept
        monkeypatch.setattr(last_token, "LARGEST", asked)
        assert reads(model, data.sequences)
        monkeypatch.setattr(last_token, "LARGEST", asked - 1)
        assert not reads(model, data.sequences)


def test_dropout_is_drawn_on_whole_texts():
    model = steered(random_backbone(), LoReFT, layers=(1, 2), prefix=0, suffix=1)
    data, state, found = questions(model), moved_state(model), []
    for each in (kept(model, data), data):
        torch.manual_seed(0)
        found.append(each.losses(model, range(len(data)), state, dropout=0.5))
    assert torch.equal(*found)
    assert not torch.equal(found[0], data.losses(model, range(len(data)), state))


UNSUITABLE = [
    {"backbone": "tiny-llama"},  # whose options are bytes
    {"layers": "all"},
    {"prompt_format": "llm_adapters"},
    {"sampled": 2},
]


@pytest.mark.parametrize("fields", UNSUITABLE, ids=str)
def test_where_the_engine_is_asked_for_and_cannot_be_one_sentence_says_why(decoder, fields):
    with pytest.raises(
        ConfigError, match=r"one token each.*one of these is missing with .*layers=.*sampled="
    ) as refused:
        assemble(agreeing(decoder, **fields, engine="last_token"))
    assert "\n" not in str(refused.value)
    assert not any(c.train.last for c in assemble(agreeing(decoder, **fields)).clients)  # and "auto" goes another way


@pytest.mark.parametrize("fields", [
    {"positions": "l2"}, {"positions": "f1+l1"}, {"dropout": 0.1}, {"objective": "answer"}, {"intervention": "lora"},
], ids=str)  # fmt: skip
def test_a_config_for_which_it_is_not_is_refused_before_anything_is_loaded(fields):
    with pytest.raises(ConfigError, match=r'engine="last_token" is for interventions at positions="l1".*; got '):
        RunConfig(**{"benchmark": "agreement", "engine": "last_token", **fields})


def test_tests_are_read_so_only_where_the_likelihood_alone_counts(decoder):
    for scoring, tests in (("likelihood", True), ("likelihood_per_character", False)):
        federation = assemble(agreeing(decoder, scoring=scoring, union_size=8))
        for client in federation.clients:
            assert client.train.last and client.held_out.last
            assert all(bool(part.last) == tests for part in client.test)
        assert all(bool(part.last) == tests for part in federation.union)


def test_with_likelihood_per_character_it_is_still_the_run_one_by_one(decoder):
    """ " no" has fewer characters than " yes": logits would give another answer."""
    config = agreeing(decoder, scoring="likelihood_per_character", test_size=40)
    equal_runs(config)
    assert fresh(config).accuracy().tolist() != fresh(config.but(scoring="likelihood")).accuracy().tolist()


# ---- rounds and runs ------------------------------------------------------------------------------------------------


def equal_runs(config, within=1e-4):
    """A run whose texts are read at their last tokens, and the same run on whole texts, one client after another."""
    found, expected = fresh(config.but(engine="last_token")), fresh(config.but(engine="one_by_one"))
    alone = METHODS[config.method].one_by_one
    assert found.manifest["engine"] == ("one_by_one" if alone else "last_token")
    assert expected.manifest["engine"] == "one_by_one"
    way = (found.states - expected.states).norm(dim=1) / expected.states.norm(dim=1)
    assert float(way.max()) < within
    assert found.accuracy().tolist() == expected.accuracy().tolist()
    for metric in ("loss", "admitted", "present", "lam"):
        one, other = rows(found, metric), rows(expected, metric)
        assert one["client"].tolist() == other["client"].tolist()
        assert one["value"].tolist() == pytest.approx(other["value"].tolist(), abs=1e-4, nan_ok=True), metric
    torch.testing.assert_close(found.mixing_matrices, expected.mixing_matrices, atol=1e-4, rtol=0)
    return found


@pytest.mark.parametrize("method", [name for name, each in METHODS.items() if name != "fedit" and not each.one_by_one])
def test_every_method_learns_the_same(decoder, method):
    equal_runs(agreeing(decoder, method=method, union_size=6))


@pytest.mark.parametrize("name", ["direft", "consreft"])
def test_other_interventions_do(decoder, name):
    equal_runs(agreeing(decoder, intervention=name, init="random"))


OTHERWISE = [
    {"mixing": "adaptive"}, {"mixing": "scheduled"}, {"tied": True, "layers": [1, 3]}, {"layers": [3]},
    {"joins": [[1, 2]], "leaves": [[4, 1]]}, {"late": [[2, 1]]}, {"drops": [[3, 1]], "schedule_over": "rounds"},
    {"hostile": 1, "attack": "sign_flip"}, {"hostile": 1, "attack": "one_nan"}, {"hostile": 1, "attack": "label_flip"},
    {"hostile": 1, "attack": "collude", "aggregation": "krum", "clients": 5}, {"max_length": 24},
    {"align": True}, {"sharing": "Wb"}, {"batch_size": 3, "local_steps": None, "eval_every": 1},
    {"method": "feddpa", "dpa_weighting": "fixed"}, {"method": "feddpa", "dpa_share": 0.2, "late": [[1, 1]]},
]  # fmt: skip


@pytest.mark.parametrize("fields", OTHERWISE, ids=together)
def test_it_is_so_whoever_takes_part_and_however_states_are_mixed(decoder, fields):
    equal_runs(agreeing(decoder, **fields))


def test_auto_means_it_wherever_it_is_possible(decoder):
    one, other = (fresh(agreeing(decoder, engine=engine)) for engine in ("auto", "last_token"))
    assert one.manifest["engine"] == "last_token" and torch.equal(one.states, other.states)
    assert fresh(agreeing(decoder, dropout=0.1)).manifest["engine"] == "one_by_one"
