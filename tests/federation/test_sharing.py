"""What leaves a client: the tensors that `sharing` and `head` name, and no others."""

from dataclasses import replace

import pytest
import torch

from fedreft_lib import all_but_me
from fedreft_lib.federation import admission
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.client import common_start
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from tests.helpers.federations import GLUE, LORA, finish, small

# ---- what is shared -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fedavg", "fedreft", "fedprox", "fedadam"])
@pytest.mark.parametrize(("sharing", "shared"), [
    ("full", ("R", "W", "b")), ("R", ("R",)), ("Wb", ("W", "b")), ("A", ("A",)), ("B", ("B",)),
])  # fmt: skip
def test_what_is_not_shared_stays_as_it_was_learned_and_is_not_paid_for(method, sharing, shared):
    fields = LORA if sharing in "AB" else {}
    config = small(method=method, sharing=sharing, **fields, rounds=1, retraction="raw", proximal_mu=0.0, mixing=0.5)
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    learned, _ = federated_round(federation, config.but(method="local", sharing="full"), X, 1)
    found, report = federated_round(federation, config, X, 1)
    bytes_of = 0
    for k in range(4):
        own, before, after = (spec.named(states[k]) for states in (learned, X, found))
        for name in own:
            is_shared = name.rsplit(".", 1)[-1] in shared
            assert torch.equal(after[name], own[name]) != is_shared, name
            bytes_of += 4 * own[name].numel() * is_shared
    up, down = (sum(row.get(f"{way}link_bytes", 0) for row in report.rows) for way in ("up", "down"))
    assert up == down == bytes_of
    assert finish(config).manifest["trainable_params"] == spec.size  # all of it is trained


@pytest.mark.parametrize("method", ["fedavg", "fedreft"])
def test_a_partial_aggregate_is_that_of_the_shared_tensors_alone(method):
    config = small(method=method, sharing="R", retraction="raw", mixing=0.5)
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    learned, _ = federated_round(federation, config.but(method="local", sharing="full"), X, 1)
    R = torch.stack([spec.named(row)["R"].reshape(-1) for row in learned])
    expected = all_but_me(R).aggregate if method == "fedreft" else R.mean(0).expand(4, -1)
    lam = 0.5 if method == "fedreft" else 1.0
    found, _ = federated_round(federation, config, X, 1)
    for k in range(4):
        mixed = (1 - lam) * R[k] + lam * expected[k]
        torch.testing.assert_close(spec.named(found[k])["R"].reshape(-1), mixed, atol=1e-6, rtol=1e-6)


# ---- the head -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["averaged", "shared", "private"])
def test_a_head_is_averaged_or_mixed_like_the_rest_or_never_sent(head):
    config = small(**GLUE, head=head, mixing=0.25, aggregation="mean", retraction="raw", train_size=8, rounds=1)
    federation = assemble(config)
    spec, X = federation.model.spec, start(federation, config)
    learned, _ = federated_round(federation, config.but(method="local", head="averaged"), X, 1)
    found, report = federated_round(federation, config, X, 1)
    told, after = ([spec.named(row) for row in states] for states in (learned, found))
    for name in ("head.D", "head.e", "head.C", "head.f"):
        every = torch.stack([state[name] for state in told])
        for k in range(4):
            others = torch.stack([every[j] for j in range(4) if j != k]).mean(0)
            expected = {
                "averaged": every.mean(0), "shared": 0.75 * every[k] + 0.25 * others, "private": every[k],
            }[head]  # fmt: skip
            torch.testing.assert_close(after[k][name], expected, atol=1e-6, rtol=1e-6)
    sizes = {name: tensor.numel() for name, tensor in told[0].items()}
    sent = sum(size for name, size in sizes.items() if head != "private" or "head" not in name)
    up, down = (sum(row.get(f"{way}link_bytes", 0) for row in report.rows) for way in ("up", "down"))
    assert up == down == 4 * 4 * sent


def test_an_averaged_head_weighs_by_examples_and_leaves_out_who_was_not_admitted(monkeypatch):
    config = small(**GLUE, rounds=1, retraction="raw")
    federation = assemble(config)
    clients = [
        replace(c, train=c.train.subset(range(n))) for c, n in zip(federation.clients, (8, 6, 2, 4), strict=True)
    ]
    federation = replace(federation, clients=clients, memo={})
    spec, X = federation.model.spec, start(federation, config)
    learned, _ = federated_round(federation, config.but(method="local"), X, 1)
    monkeypatch.setattr(admission, "refusal", lambda update, n, spec: "is bad" if n == 2 else None)
    found, _ = federated_round(federation, config, X, 1)
    D = [spec.named(row)["head.D"] for row in learned]
    for row in found:
        expected = (8 * D[0] + 6 * D[1] + 4 * D[3]) / 18
        torch.testing.assert_close(spec.named(row)["head.D"], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("init", ["identity", "random"])
def test_round_0_with_a_head_is_the_bare_backbone_under_the_untrained_head(init):
    config = small(**{**GLUE, "layers": "all", "rank": 16}, init=init, rounds=0, test_size=40)
    federation, done = assemble(config), finish(config)
    head = {n: t for n, t in common_start(federation.model.layout, config).items() if n.startswith("head.")}
    for client in federation.clients:
        with torch.no_grad():
            h = federation.model.hidden_states(client.test[0].batch(federation.model, range(40)), None)[:, 0]
        said = torch.tanh(h @ head["head.D"].T + head["head.e"]) @ head["head.C"].T + head["head.f"]
        right = said.argmax(1) == torch.tensor(client.test[0].labels)
        assert done.accuracy(0)[client.name] == pytest.approx(100 * float(right.double().mean()))
