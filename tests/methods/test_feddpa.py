"""FedDPA: a global branch that is averaged and a local one that stays, blended in a share of each test item's own."""

import dataclasses

import pytest
import torch

from fedreft_lib import run
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.evaluation import evaluate_all
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.methods import METHODS
from fedreft_lib.model import scoring
from fedreft_lib.seeds import derive
from tests.helpers.federations import small

BOTH = pytest.mark.parametrize("intervention", ["loreft", "lora"])
NEIGHBOURS = 5


def dpa(**fields):
    return small(**{"method": "feddpa", "retraction": "raw", "dpa_weighting": "fixed", **fields})


def apart(federation, config, scale=0.2):
    """X in which every client and every branch has its own numbers."""
    X = start(federation, config)
    return X + scale * torch.randn(X.shape, generator=torch.Generator().manual_seed(1))


@BOTH
def test_the_first_round_trains_the_global_branch_alone_and_later_ones_both(learned, intervention):
    config = dpa(intervention=intervention, local_steps=4)
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    for t, moving in ((1, ("global",)), (2, ("global", "local")), (3, ("global", "local"))):
        sent = learned(federation, config, X, t)
        for name, tensor in spec.named(sent[2]).items():
            same = torch.equal(tensor, spec.named(X[2])[name])
            assert same == (not any(f"{branch}." in name for branch in moving)), (t, name)
        X, _ = federated_round(federation, config, X, t)


@BOTH
def test_the_global_branch_becomes_the_plain_mean_and_the_local_one_never_leaves(uneven, learned, intervention):
    config = dpa(intervention=intervention)
    federation = uneven(config)
    spec, X = federation.model.spec, start(federation, config)
    for t in (1, 2):
        told = [spec.named(row) for row in learned(federation, config, X, t)]
        X, report = federated_round(federation, config, X, t)
        for k in range(4):
            for name, tensor in spec.named(X[k]).items():
                if "local." in name:
                    assert torch.equal(tensor, told[k][name])
                else:
                    mean = sum(each[name].double() for each in told) / 4
                    torch.testing.assert_close(tensor.double(), mean, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(report.M, torch.full((4, 4), 0.25))


@BOTH
def test_the_global_branch_alone_is_sent_and_both_are_counted(intervention):
    done = run(dpa(intervention=intervention, rounds=1), progress=False)
    assert done.history["uplink_bytes"].sum() == done.history["downlink_bytes"].sum() == 4 * 4 * done.spec.size // 2
    assert done.manifest["trainable_params"] == done.spec.size


@BOTH
def test_the_local_branch_is_trained_in_its_share_beside_the_global_one_and_then_that_alone(monkeypatch, intervention):
    config = dpa(intervention=intervention, dpa_share=0.3, local_steps=5, engine="one_by_one")
    federation, seen = assemble(config), []
    forward = type(federation.model).answer_logprobs

    def watched(self, batch, state, dropout=0.0):
        trained = {"local" if "local." in name else "global" for name, tensor in state.items() if tensor.requires_grad}
        seen.append((trained, None if batch.share is None else batch.share.unique().tolist()))
        return forward(self, batch, state, dropout)

    monkeypatch.setattr(type(federation.model), "answer_logprobs", watched)
    federated_round(federation, config, start(federation, config), 2)
    one = 2 * [({"local"}, None)] + 3 * [({"global"}, [0.0])]
    assert seen == 4 * one  # as many steps as asked, the larger half for what is sent
    assert federation.model.adapter.kind.share == 0.3


@BOTH
@pytest.mark.parametrize(("share", "name"), [(0.0, "global"), (1.0, "local")])
def test_a_share_of_nought_or_one_is_a_single_branch(intervention, share, name):
    config = dpa(intervention=intervention, dpa_share=share)
    federation, plain = assemble(config), assemble(small(method="fedavg", intervention=intervention))
    row = apart(federation, config)[0]
    state = federation.model.spec.named(row)
    single = {n.replace(f"{name}.", ""): tensor for n, tensor in state.items() if f"{name}." in n}
    for one, other in zip(federation.clients, plain.clients, strict=True):
        found = scoring.loss(federation.model, state, one.held_out, 4)
        assert found == pytest.approx(scoring.loss(plain.model, single, other.held_out, 4), abs=1e-5)


@BOTH
def test_with_a_local_share_of_nought_the_first_round_is_fedavgs(intervention):
    config = dpa(intervention=intervention, dpa_share=0.0, rounds=1)
    plain = small(method="fedavg", intervention=intervention, rounds=1, retraction="raw")
    done, avg = run(config, progress=False), run(plain, progress=False)
    named = done.spec.named(done.states[0])
    shared = {n.replace("global.", ""): tensor for n, tensor in named.items() if "global." in n}
    torch.testing.assert_close(avg.spec.row(shared), avg.states[0], atol=1e-6, rtol=1e-6)  # all have eight examples
    assert done.accuracy().tolist() == avg.accuracy().tolist()


# ---- the weight of each test item -----------------------------------------------------------------------------------


def embedding(federation, state, sequence, encoder=False):
    """Last layer, last token of the prompt, of a model that has the local branch only; one text at a time."""
    model = federation.model
    kind = dataclasses.replace(model.adapter, kind=model.adapter.kind.kind)
    single = type(model)(model.backbone, kind, model.head)
    own = {n.replace("local.", ""): tensor for n, tensor in state.items() if "global." not in n}
    prompt = dataclasses.replace(sequence, ids=sequence.ids[: sequence.prompt_length], answer_lengths=())
    with torch.no_grad():
        return single.hidden_states(single.batch([prompt]), own)[0, 0 if encoder else -1].double()


def weight(federation, config, state, client, part, encoder=False):
    """w_max times the mean cosine to five of the client's training items."""
    generator = torch.Generator().manual_seed(derive(config.seed, "neighbours", client.name))
    chosen = torch.randperm(len(client.train), generator=generator)[:NEIGHBOURS].tolist()
    assert len(set(chosen)) == NEIGHBOURS
    near = [embedding(federation, state, client.train.sequences[i], encoder) for i in chosen]
    found = []
    for sequence in part.sequences:
        here = embedding(federation, state, sequence, encoder)
        cosines = [float(here @ each / (here.norm() * each.norm())) for each in near]
        found.append(config.dpa_w_max * sum(cosines) / NEIGHBOURS)
    return torch.tensor(found).clamp(0, 1)


@BOTH
def test_each_item_has_w_max_times_its_likeness_to_the_clients_own_data(intervention):
    config = dpa(intervention=intervention, dpa_weighting="instance", dpa_w_max=0.8)
    federation = assemble(config)
    states = [federation.model.spec.named(row) for row in apart(federation, config)]
    share = METHODS["feddpa"].test_share
    for state, client in zip(states, federation.clients, strict=True):
        expected = weight(federation, config, state, client, client.test[0])
        found = share(federation.model, config, state, client, client.test[0])
        torch.testing.assert_close(found, expected.float(), atol=1e-4, rtol=1e-4)
        assert float(found.std()) > 1e-4 and 0 < float(found.min()) <= float(found.max()) < 0.8
        turned = share(federation.model, config.but(dpa_weighting="instance_reversed"), state, client, client.test[0])
        torch.testing.assert_close(turned, 1 - found)
        assert share(federation.model, config.but(dpa_weighting="fixed"), state, client, client.test[0]) is None
        assert not share(federation.model, config.but(dpa_w_max=0.0), state, client, client.test[0]).any()


def test_an_encoders_item_is_known_by_its_first_token():
    config = small(
        method="feddpa", backbone="tiny-roberta", benchmark="glue", tasks=["sst2"], setup="iid", clients=2,
        positions="f3", dpa_weighting="instance",
    )  # fmt: skip
    federation = assemble(config)
    state = federation.model.spec.named(apart(federation, config)[0])
    client = federation.clients[0]
    found = METHODS["feddpa"].test_share(federation.model, config, state, client, client.test[0])
    expected = weight(federation, config, state, client, client.test[0], encoder=True)
    torch.testing.assert_close(found, expected.float(), atol=1e-4, rtol=1e-4)


@BOTH
def test_the_weight_is_what_the_scores_are_computed_with(intervention):
    config = dpa(intervention=intervention, dpa_weighting="instance", dpa_w_max=1.0, test_size=12)
    federation = assemble(config)
    X = apart(federation, config, scale=0.5)
    rows = [row for row in evaluate_all(federation, config, X, 1) if row["metric"] == "accuracy"]
    scored = {row["client"]: row["value"] for row in rows if row["split"] == "test"}
    for k, client in enumerate(federation.clients):
        state, (test,) = federation.model.spec.named(X[k]), client.test
        shares = weight(federation, config, state, client, test)
        right = [
            scoring.correct(federation.model, state, test.subset([i]), config, float(shares[i]))[0][0]
            for i in range(len(test))
        ]
        assert scored[client.name] == pytest.approx(100 * float(torch.stack(right).double().mean()))


def test_each_client_answers_the_union_with_its_own_shares():
    config = dpa(dpa_weighting="instance", dpa_w_max=1.0, union_size=12, test_size=12)
    federation = assemble(config)
    X = apart(federation, config, scale=0.5)[:1].expand(4, -1)  # all have one state, as after the first round
    rows = [row for row in evaluate_all(federation, config, X, 1) if row["metric"] == "accuracy"]
    scored = [row["value"] for row in rows if row["split"] == "union"]
    state, expected = federation.model.spec.named(X[0]), []
    for client in federation.clients:
        share = METHODS["feddpa"].test_share(federation.model, config, state, client, federation.union[0])
        right, _ = scoring.correct(federation.model, state, federation.union[0], config, share)
        expected.append(100 * float(right.double().mean()))
    assert scored == pytest.approx(expected) and len(set(expected)) > 1
