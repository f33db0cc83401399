"""FLAME: a client uses its best k experts at each token, and trains those most that it uses most."""

import pytest
import torch

from fedreft_lib import run
from fedreft_lib.core.interventions import LoReFT
from fedreft_lib.core.state import Spec
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.methods import METHODS
from fedreft_lib.methods.lora import LoRA
from fedreft_lib.methods.method import Sent, weighted_mean
from fedreft_lib.methods.routed import Routed
from fedreft_lib.workbook import method_facts
from tests.helpers.federations import finish, rows, same, small, stopped, thinned
from tests.methods.test_branches import lora_adds, reft_adds

BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])
KINDS = pytest.mark.parametrize(
    ("kind", "dims", "adds"), [(LoReFT, (12,), reft_adds), (LoRA(1.7), (12, 7), lora_adds)], ids=["loreft", "lora"]
)


def flame(**fields):
    return small(**{"method": "flame", **fields})


def edits(done):
    """The clients' sent tensors, without the dimension of a single expert."""
    names = [n for n, _ in done.spec.shapes if n.split(".")[0] != "told" and n.split(".")[-1] not in ("k", "s")]
    return [{n: done.spec.named(row)[n] for n in names if not n.endswith("route")} for row in done.states]


# ---- the edit -------------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_best_k_experts_are_weighed_by_a_softmax_over_all(kind, dims, adds, k):
    generator = torch.Generator().manual_seed(0)
    made = Routed(kind, 4)
    phi = {n: t[0] for n, t in made.init(1, 3, *dims, start="random", generator=generator).items()}
    phi |= {"route": torch.randn(4, 12, generator=generator), "k": torch.tensor([float(k)]), "s": torch.tensor([1.3])}
    x = torch.randn(5, 12, generator=generator)
    expected = []
    for each in x:
        p = (phi["route"].double() @ each.double()).exp()
        p = p / p.sum()
        best = sorted(range(4), key=lambda j: -float(p[j]))[:k]
        added = [p[j] * adds(each[None], {n: phi[n][j] for n in made.of_experts})[0] for j in best]
        expected.append(1.3 * sum(added))
    torch.testing.assert_close(made.delta(x, phi).double(), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_of_equal_experts_the_first_are_chosen():
    phi = {"route": torch.zeros(4, 12), "k": torch.tensor([2.0])}
    assert Routed(LoReFT, 4).routes(torch.ones(1, 12), phi)[1].tolist() == [[True, True, False, False]]


# ---- the server -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "first"), [(0.0, (0.25, 0.75)), (1.0, (4 / 7, 3 / 7)), (2.0, (0.842105, 0.157895))], ids=str
)
def test_an_experts_weights_are_its_share_of_tokens_to_a_power_times_examples(t, first):
    spec = Spec.of({"A": (1, 3, 1, 1), "B": (1, 3, 1, 1), "route": (1, 3, 1)})
    X = torch.stack([torch.ones(9), torch.zeros(9)])
    f = torch.tensor([[[1.0, 0.5, 0.0]], [[0.25, 0.5, 0.0]]])  # nobody chose the third
    before, weights = torch.full((2, 9), -5.0), torch.tensor([10.0, 30.0])
    config = flame(flame_t=t, intervention="lora")
    told = {"told.chosen.route": f}
    sent = Sent(X, before, weights, spec, config, Routed(LoRA(1.0), 3), told=told)
    found = METHODS["flame"].answer(sent, weighted_mean(X, weights, config))[1]
    third = -5.0 if t else 0.25
    for name in ("A", "B"):
        assert found[name].flatten().tolist() == pytest.approx([first[0], 0.25, third], abs=1e-6)
    assert found["route"].flatten().tolist() == [0.25] * 3


# ---- whole runs -----------------------------------------------------------------------------------------------------


@BOTH
def test_one_expert_is_fedavg(learned, intervention):
    fields = {"intervention": intervention, "targets": ("q_proj",), "rounds": 1, "test_size": 1}  # no draw after it
    config, plain = flame(experts=1, flame_scale="one", **fields), small(method="fedavg", **fields)
    states = []
    for each in (config, plain):
        federation = assemble(each)
        row = learned(federation, each, start(federation, each))[2]
        states.append(federation.model.spec.named(row))
    for name, tensor in states[1].items():
        assert torch.equal(states[0][name].squeeze(1), tensor)  # training, to the bit
    for ours, theirs in zip(edits(finish(config)), edits(finish(plain)), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:  # a product's last bits depend on its width, and there are a router's columns beside
            torch.testing.assert_close(ours[name].squeeze(1), theirs[name], atol=1e-6, rtol=1e-6)


@BOTH
def test_where_all_use_all_alike_every_tensor_is_averaged_by_examples(uneven, learned, intervention):
    config = flame(intervention=intervention, experts=3, flame_t=0.0, flame_scale="one", retraction="raw")
    federation = uneven(config)
    spec, X = federation.model.spec, start(federation, config)
    sent, (found, _) = learned(federation, config, X), federated_round(federation, config, X, 1)
    mean = spec.named(torch.tensor([8, 5, 2, 8], dtype=torch.float64) / 23 @ sent.double())
    for name, tensor in spec.named(found[3]).items():
        if not name.startswith("told"):
            torch.testing.assert_close(tensor.double(), mean[name], atol=1e-6, rtol=1e-5)


@BOTH
def test_shares_count_the_tokens_that_the_model_routes(monkeypatch, learned, intervention):
    """Against the routes of the edits themselves, in passes of one item."""
    config = flame(intervention=intervention, active=(3, 3, 2, 1), experts=3, local_steps=1)
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    told = [spec.named(row) for row in learned(federation, config, X)]
    for state, k in zip(told, (3, 3, 2, 1), strict=True):
        for name, f in state.items():
            if name.startswith("told"):
                torch.testing.assert_close(f.sum(1), torch.full((len(f),), float(k)))
    seen, state, model, honest = [], told[3], federation.model, Routed.routes

    def watched(self, x, phi):
        p, chosen = honest(self, x, phi)
        lines = zip(x, chosen, strict=True) if intervention == "loreft" else [(x, chosen)]  # a line for each group
        seen.extend(of[own.any(-1)] for own, of in lines)  # lines of edits are filled up with zeros
        return p, chosen

    data = federation.clients[3].train
    batches = [data.batch(model, [i]) for i in range(len(data))]
    monkeypatch.setattr(Routed, "routes", watched)
    for batch in batches:
        with torch.no_grad():
            model.hidden_states(batch, state)
    if intervention == "lora":
        order = [(f"{linear}.route", place) for place in range(2) for linear in ("q_proj", "v_proj")]
    else:
        sites = model.adapter.sites
        order = [("route", sites.index(layer, group)) for layer in sites.layers for group in sites.groups]
    for i, (name, place) in enumerate(order):
        expected = torch.cat(seen[i :: len(order)]).float().mean(0)
        torch.testing.assert_close(state[f"told.chosen.{name}"][place], expected)


@BOTH
@pytest.mark.parametrize("scale", ["learned", "one", "ratio"])
def test_k_and_s_stay_with_their_client(intervention, scale):
    done = run(
        flame(intervention=intervention, active=(4, 2, 1, 1), flame_scale=scale, rounds=1, test_size=1), progress=False
    )
    ratio = (1.0, 2.0, 4.0, 4.0)
    for row, k, s in zip(done.states, (4, 2, 1, 1), ratio, strict=True):
        state = done.spec.named(row)
        for name, tensor in state.items():
            if name.split(".")[-1] == "k":
                assert (tensor == k).all()
            if name.split(".")[-1] == "s":
                assert bool((tensor == (s if scale == "ratio" else 1.0)).all()) == (scale != "learned")
    assert method_facts.kept(done) == ("s" if scale == "learned" else "nothing")


@BOTH
def test_it_bears_absence_and_resumes_to_the_same_bits(tmp_path, intervention):
    config = thinned(method="flame", intervention=intervention, active=(4, 4, 2, 2, 1, 1), test_size=1)
    whole = finish(config)
    stopped(config, tmp_path, 1)
    same(finish(config, tmp_path), whole)
    held = {n.removeprefix("for all."): x for n, x in whole.memory.items() if n.startswith("for all.")}
    assert not any(n.split(".")[0] == "told" or n.split(".")[-1] in ("k", "s") for n in held)
    assert len(set(rows(whole, "residual")["downlink_bytes"])) == 1
