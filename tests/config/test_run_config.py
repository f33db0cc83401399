"""A run's parameters: each explained, each checked in the first second, none passed over."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedreft_lib import RunConfig, run
from fedreft_lib.data import FAMILIES
from fedreft_lib.errors import ConfigError
from fedreft_lib.federation import assembly

NAN = math.nan


class TouchedError(Exception):
    """A model, a dataset or the network was asked for."""


@pytest.fixture
def nothing_to_load(monkeypatch):
    def touched(*args, **kwargs):
        raise TouchedError

    monkeypatch.setattr(assembly, "shared_backbone", touched)
    monkeypatch.setattr(assembly, "partition_of", touched)
    monkeypatch.setattr("socket.socket.connect", touched)


def test_the_guard_itself_works(nothing_to_load):
    with pytest.raises(TouchedError):
        run(RunConfig(seed=123), progress=False)


# Each with a word that the sentence must have: the nearest right name, the bound, or what is allowed.
BAD = [
    ({"mixin": 0.3}, "'mixing'"),
    ({"client": 3}, "'clients'"),
    ({"Rank": 8}, "'rank'"),
    ({"local_epoch": 1}, "'local_epochs'"),
    ({"weight_decy": 0.0}, "'weight_decay'"),
    ({"agregation": "mean"}, "'aggregation'"),
    ({"xyzzy": 1}, "there is no parameter 'xyzzy'"),
    ({"mixing": 1.7}, "1.7"),
    ({"mixing": -0.1}, "-0.1"),
    ({"mixing": NAN}, "nan"),
    ({"mixing": "adaptiv"}, "'adaptive'"),
    ({"mixing": True}, "True"),
    ({"mixing": "0.3"}, "'0.3'"),
    ({"rank": 0}, "rank"),
    ({"rank": 8.5}, "8.5"),
    ({"rank": "8"}, "'8'"),
    ({"rank": True}, "True"),
    ({"lr": NAN}, "nan"),
    ({"lr": math.inf}, "inf"),
    ({"lr": "2e-3"}, "'2e-3'"),  # what YAML makes of 2e-3
    ({"lr": 0.0}, "lr"),
    ({"rounds": -1}, "-1"),
    ({"rounds": 2.5}, "2.5"),
    ({"clients": 0}, "clients"),
    ({"clients": 1}, "at least 2 clients"),
    ({"method": "fedavgg"}, "'fedavg'"),
    ({"aggregation": "median"}, "'geometric_median'"),
    ({"setup": "noniid"}, "'dirichlet'"),
    ({"intervention": "lorra"}, "'loreft'"),
    ({"dtype": "fp16"}, "'bfloat16'"),
    ({"retraction": "svd"}, "'polar'"),
    ({"positions": "p7+s7"}, "f7+l7"),
    ({"positions": "f0+l0"}, "f7+l7"),
    ({"layers": "first"}, "20-29"),
    ({"layers": [3, 1]}, "increasing"),
    ({"layers": [1, 1]}, "increasing"),
    ({"layers": [-1]}, "[-1]"),
    ({"layers": "5-3"}, "increasing"),
    ({"tasks": []}, "one or more"),
    ({"tasks": ["piqa", "piqa"]}, "different"),
    ({"tasks": "piqa"}, "'piqa'"),
    ({"source": "local"}, "data_dir"),
    ({"data_dir": "questions"}, 'source="local"'),
    ({"setup": "own"}, 'source="local"'),
    ({"decayed": ["W", "R"]}, "orthogonal parametrisation"),
    ({"decayed": ["V"]}, '["W", "b"]'),
    ({"warmup": 1.0}, "less than 1"),
    ({"clip": 0.0}, "clip"),
    ({"clip": math.inf}, "inf"),
    ({"weight_decay": -0.01}, "-0.01"),
    ({"batch_size": 0}, "batch_size"),
    ({"local_steps": 0}, "local_steps"),
    ({"scoring": "generation"}, "llm_adapters"),
    ({"mixing_range": [0.1]}, "two shares"),
    ({"mixing_range": [0.1, 2.0]}, "2.0"),
    ({"mixing_grid": []}, "at least one"),
    ({"mixing_grid": [0.5, NAN]}, "nan"),
    ({"seed": -1}, "-1"),
    ({"seed": None}, "None"),
    ({"alpha": 0.0}, "alpha"),
    ({"max_length": 5}, "16"),
    ({"tied": 1}, "boolean"),
    ({"benchmark": "superglue"}, "'glue'"),
    ({"benchmark": ["glue"]}, "benchmark"),
    ({"tasks": ["piqa"], "benchmark": "glue"}, "glue has no task 'piqa'"),
    ({"tasks": ["opnbookqa"], "setup": "mixed"}, "openbookqa"),
    ({"method": "fedit"}, 'intervention="lora"'),
    ({"method": "fedsb", "intervention": "direft"}, '"lora" and "loreft"'),
    ({"method": "lorafair", "intervention": "noreft"}, '"lora" and "loreft"'),
    ({"flood_score": "energy", "method": "flood"}, "needs a classification head"),
    ({"method": "flood", "benchmark": "glue", "tasks": ["stsb"]}, "stsb, a regression, has none"),
    ({"sharing": "R", "method": "lorafair"}, "lorafair itself determines what it sends"),
    ({"method": "alore", "intervention": "direft"}, 'alore has a form over "lora" and "loreft"'),
    ({"method": "fedpros"}, "'fedprox'"),
    ({"sharing": "A"}, "intervention='loreft' does not have"),
    ({"sharing": "B", "intervention": "direft"}, "intervention='direft' does not have"),
    ({"sharing": "R", "intervention": "lora"}, "intervention='lora' does not have"),
    ({"sharing": "Wb", "intervention": "lora"}, "intervention='lora' does not have"),
    ({"sharing": "W"}, "'Wb'"),
    ({"sharing": "R", "method": "fedsa"}, "fedsa itself determines what it sends"),
    ({"sharing": "A", "method": "fedit", "intervention": "lora"}, "fedit itself determines what it sends"),
    ({"sharing": "R", "method": "local"}, "local itself determines what it sends"),
    ({"head": "public"}, "'averaged'"),
    ({"head": "shared", "method": "ffa"}, 'with ffa use "averaged"'),
    ({"head": "shared", "method": "local"}, 'with local use "averaged"'),
    ({"align": True, "intervention": "lora"}, "align turns whole interventions"),
    ({"align": True, "sharing": "R"}, 'sharing="full"'),
    ({"align": True, "method": "fedsa"}, "fedavg, fedreft, fedprox, fedadam"),
    ({"align": True, "method": "local"}, "fedavg, fedreft, fedprox, fedadam"),
    ({"align": 1}, "boolean"),
    ({"targets": [], "intervention": "lora"}, "one or more different"),
    ({"targets": ["q_proj", "q_proj"], "intervention": "lora"}, "one or more different"),
    ({"targets": "q_proj"}, "'q_proj'"),
    ({"lora_alpha": 0.0}, "greater than 0"),
    ({"dropout": 1.0}, "less than 1"),
    ({"dropout": -0.1}, "-0.1"),
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"proximal_mu": -1.0}, "-1.0"),
    ({"proximal_mu": NAN}, "nan"),
    ({"server_lr": -1.0}, "-1.0"),
    ({"server_lr": math.inf}, "inf"),
    ({"server_beta1": 1.0}, "less than 1"),
    ({"server_beta2": -0.1}, "-0.1"),
    ({"server_tau": 0.0}, "greater than 0"),
    ({"dpa_share": 1.5}, "1.5"),
    ({"dpa_w_max": 2.0}, "2.0"),
    ({"dpa_weighting": "instances"}, "'instance_reversed'"),
    ({"agreement": 0.4}, "0.4"),
    ({"agreement": 1.1}, "1.1"),
    ({"agreement": NAN}, "nan"),
    ({"objective": "choices"}, "'choice'"),
    ({"objective": "choice", "benchmark": "arithmetic"}, "arithmetic has none"),
    ({"objective": "choice", "benchmark": "glue"}, "glue has none"),
    (
        {"objective": "choice", "benchmark": "glue", "source": "local", "data_dir": "x", "tasks": ["sst2"]},
        "glue has none",
    ),
    ({"schedule_over": "run"}, "'rounds'"),
    ({"engine": "last"}, "'last_token'"),
    ({"engine": "last_token"}, "positions='f7+l7', objective='answer'"),
    ({"scoring": "generation", "benchmark": "agreement"}, "llm_adapters"),
]


@pytest.mark.parametrize(("bad", "said"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_parameter_is_refused_in_one_sentence_before_anything_is_loaded(bad, said, nothing_to_load):
    with pytest.raises(ConfigError) as refused:
        run(RunConfig(**bad), progress=False)
    text = str(refused.value)
    assert said in text
    assert "\n" not in text and "pydantic" not in text and 10 < len(text) < 300
    assert next(iter(bad)) in text or "fedreft needs" in text


@pytest.mark.parametrize(
    "bad",
    [
        {"clients": 3},  # distinct tasks, of which the default has four
        {"tasks": ["piqa", "opnbookqa"], "setup": "mixed"},
        {"intervention": "consreft"},  # has no identity start, which is the default
        {"device": "gpu"},
        {"method": "fedavg", "clients": 1, "tasks": ["piqa"]},  # stops in round 1: one update is too few
    ],
    ids=lambda bad: " ".join(bad),
)
def test_parameters_that_cannot_go_together_are_refused_before_anything_is_loaded(bad, nothing_to_load):
    with pytest.raises(ConfigError):
        run(RunConfig(**bad), progress=False)


@pytest.mark.parametrize(
    "fields",
    [
        *({"method": "fedsb", "intervention": name} for name in ("lora", "loreft")),
        *(
            {"method": m, "sharing": s}
            for m in ("fedavg", "fedreft", "fedprox", "fedadam")
            for s in ("R", "Wb", "full")
        ),
        *({"method": m, "sharing": s, "intervention": "lora"} for m in ("fedavg", "fedreft") for s in ("A", "B")),
        *({"method": m, "align": True, "head": "shared"} for m in ("fedavg", "fedreft", "fedprox", "fedadam")),
        {"method": "fedsa", "head": "private"},
        {"method": "flood", "benchmark": "glue", "flood_score": "energy"},
        *({"method": m, "sharing": "R"} for m in ("lorar", "tuned", "flood")),
        {"intervention": "lora", "init": "identity", "targets": ["q_proj"]},
        {"benchmark": "instruction", "scoring": "generation"},  # plain prompts are in the way of answer words alone
        {"targets": []},  # nobody asks for them
        {"dropout": 0.0, "proximal_mu": 0.0, "server_lr": 0.0, "server_beta1": 0.0, "server_beta2": 0.0},
        {"dpa_share": 0.0, "dpa_w_max": 1.0},
        {"benchmark": "agreement", "agreement": 0.5},
        {"benchmark": "agreement", "agreement": 1.0, "engine": "last_token", "scoring": "likelihood_per_character"},
        {"benchmark": "agreement", "clients": 1, "method": "local"},
        {"objective": "choice", "benchmark": "instruction", "source": "local", "data_dir": "x"},
        {"schedule_over": "rounds", "rounds": 0},
    ],
    ids=lambda fields: " ".join(map(str, fields.values())),
)
def test_what_goes_together_is_accepted(fields):
    config = RunConfig(**fields)
    for name, value in fields.items():
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value)


def test_a_family_brings_its_own_tasks_and_backbone_and_gives_way_to_what_is_said():
    for name, family in FAMILIES.items():
        config = RunConfig(benchmark=name, clients=8)
        assert config.tasks == family.default_tasks and config.backbone == family.default_backbone
    assert RunConfig().tasks == RunConfig(benchmark="commonsense").tasks
    said = RunConfig(benchmark="glue", tasks=["rte"], backbone="tiny-roberta")
    assert said.tasks == ("rte",) and said.backbone == "tiny-roberta"
    assert RunConfig(benchmark="glue").but(rank=1).tasks == FAMILIES["glue"].default_tasks


def test_tasks_of_ones_own_files_may_have_any_name():
    assert RunConfig(source="local", data_dir="mine", tasks=["birds"]).tasks == ("birds",)


def test_every_parameter_has_a_default_and_a_reason():
    RunConfig()
    for name, field in RunConfig.model_fields.items():
        assert not field.is_required(), name
        assert len(field.description) > 5, name


def test_agreement_brings_what_a_task_with_a_known_optimum_needs_and_gives_way_to_what_is_said():
    config = RunConfig(benchmark="agreement")
    found = (config.setup, config.positions, config.objective, config.scoring)
    assert found == ("iid", "l1", "choice", "likelihood")
    said = {"setup": "distinct", "positions": "l3", "objective": "answer", "scoring": "likelihood_per_character"}
    config = RunConfig(benchmark="agreement", **said)
    assert {name: getattr(config, name) for name in said} == said and config.but(rank=1).objective == "answer"


def test_a_schedule_over_the_rounds_goes_through_them_once_and_ends():
    config = RunConfig(schedule_over="rounds", rounds=3)
    assert [config.schedule_part(5, t) for t in (1, 2, 3)] == [(0, 15), (5, 15), (10, 15)]
    assert [config.but(schedule_over="round").schedule_part(5, t) for t in (1, 2, 9)] == [(0, 5)] * 3
    with pytest.raises(ConfigError, match=r'schedule_over="rounds" ends with round 3, got round 4: give more rounds'):
        config.schedule_part(5, 4)
    assert config.but(rounds=0).schedule_part(5, 1) == (0, 5)  # which Fed-SB's start asks for


def test_the_papers_symbols_are_there():
    symbols = {name: field.json_schema_extra["symbol"] for name, field in RunConfig.model_fields.items()}
    expected = {"intervention": "Phi", "rank": "r", "layers": "l", "positions": "P", "clients": "C", "rounds": "T"}
    expected |= {"proximal_mu": "mu", "server_lr": "eta", "server_tau": "tau", "dpa_share": "a", "dpa_w_max": "w_max"}
    expected |= {"local_epochs": "E", "mixing": "lambda", "aggregation": "ABM", "setup": "DT, MT", "tied": "tie-phi"}
    assert {name: symbols[name] for name in expected} == expected


# ---- why R is never decayed -----------------------------------------------------------------------------------------


def test_the_refusal_to_decay_R_says_why():
    with pytest.raises(ConfigError, match="one step makes R zero for good"):
        RunConfig(decayed=["R"])


@pytest.mark.parametrize("decay", [0.01, 0.0])
def test_one_step_of_weight_decay_on_torchs_orthogonal_weight_makes_it_zero(decay):
    layer = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(3, 16, bias=False))  # (d, r), as pyreft has it
    optimiser = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=decay)
    layer(torch.randn(5, 3)).square().sum().backward()
    optimiser.step()
    if decay:
        assert torch.equal(layer.weight, torch.zeros(16, 3))
    else:
        torch.testing.assert_close(layer.weight.T @ layer.weight, torch.eye(3), atol=1e-5, rtol=0)


# ---- identity of configs --------------------------------------------------------------------------------------------

SOME_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "rank": st.integers(1, 512),
        "mixing": st.one_of(st.floats(0.001, 1), st.sampled_from([0, 1, "scheduled", "adaptive"])),
        "lr": st.floats(1e-9, 1),
        "layers": st.one_of(st.just("all"), st.just("2-3"), st.sets(st.integers(0, 9), min_size=1).map(sorted)),
        "method": st.sampled_from(["local", "fedavg", "fedreft", "centralised", "fedprox", "fedsa", "flora"]),
        "seed": st.integers(0, 2**32 - 1),
        "tasks": st.sampled_from([["piqa"], ["siqa", "boolq"]]),
        "local_steps": st.one_of(st.none(), st.integers(1, 99)),
        "mixing_grid": st.lists(st.floats(0.001, 1), min_size=1, max_size=5),
        "tied": st.booleans(),
        "experiment": st.text(max_size=8),
    },
)


@settings(max_examples=15, deadline=None)
@given(SOME_FIELDS, SOME_FIELDS)
def test_run_ids_are_equal_exactly_where_configs_are(one, other):
    a, b, again = RunConfig(**one), RunConfig(**other), RunConfig(**one)
    assert a == again and a.run_id == again.run_id and hash(a) == hash(again)
    assert (a == b) == (a.run_id == b.run_id)
    assert "/" not in a.run_id and " " not in a.run_id  # it names a folder


def test_minus_zero_is_zero_in_the_run_id_too():
    assert RunConfig(mixing=-0.0) == RunConfig(mixing=0.0)
    assert RunConfig(mixing=-0.0).run_id == RunConfig(mixing=0.0).run_id


def test_each_single_parameter_changes_the_run_id():
    base = RunConfig(setup="mixed", method="local")
    others = {
        "backbone": "tiny-llama", "dtype": "float32", "device": "cpu", "intervention": "direft", "rank": 2,
        "layers": "0-1", "positions": "f1", "tied": True, "init": "random", "tasks": ["piqa"], "source": "synthetic",
        "prompt_format": "llm_adapters", "scoring": "likelihood", "max_length": 64, "setup": "iid", "alpha": 1.0,
        "clients": 5, "train_size": 9, "held_out_size": 9, "test_size": 9, "union_size": 9, "local_epochs": 2,
        "local_steps": 3, "batch_size": 9, "lr": 0.1, "schedule": "constant", "warmup": 0.2, "weight_decay": 0.1,
        "decayed": ["W"], "clip": 2.0, "method": "fedavg", "aggregation": "mean", "mixing": 0.1,
        "mixing_range": [0, 1], "mixing_grid": [0.5], "retraction": "qr", "rounds": 9, "eval_every": 1, "seed": 1,
        "experiment": "x", "dropout": 0.1, "max_new_tokens": 9, "targets": ["q_proj"], "lora_alpha": 8.0,
        "head": "private", "proximal_mu": 0.1, "server_lr": 0.1, "server_beta1": 0.1, "server_beta2": 0.1,
        "server_tau": 0.1, "dpa_share": 0.1, "dpa_weighting": "fixed", "dpa_w_max": 0.1,
        "sampled": 2, "joins": [[1, 2]], "leaves": [[1, 2]], "drops": [[1, 2]], "late": [[1, 2]], "hostile": 1,
        "attack": "noise", "attack_scale": 2.0, "norm_limit": 9.0, "norm_clip": 2.0, "min_clients": 3, "byzantine": 0,
        "engine": "cohort", "agreement": 0.9, "objective": "choice", "schedule_over": "round", "item_scores": True,
        "optimiser": "sgd", "unseen": 1, "ranks": [1, 2, 4, 8], "adaptive_by": "calibrated",
        "client_layers": ["0-1", "2-3", "1-2", "all"],
        "lorar_gain": "exact", "lorar_counts": False, "fair_lambda": 0.5, "tune_steps": 2, "flood_boost": 2.0,
        "flood_share": 0.5, "flood_tau": 2.0, "flood_score": "confidence", "vra_gamma": 0.5, "vra_a": 0.5, "vra_d": 0.5,
        "ppa_mu": 0.5, "ppa_growth": "constant", "ppa_weights": "uniform", "hl_weights": "blend", "hl_deploy": "full",
        "experts": 2, "active": [1, 2, 1, 2], "flame_t": 1.0, "flame_scale": "one", "ins_pool": 4, "ins_top": 2,
        "ins_pull": 0.5, "ins_form": "scale", "gmm_components": 3, "gmm_learners": 3, "gmm_dims": 4, "gmm_ridge": 0.5,
        "gmm_loss": "mean", "gmm_covariance": "pooled", "alore_blocks": 2, "glomo_beta": 0.5, "glomo_momentum": 0.5,
    }  # fmt: skip
    apart = {"benchmark", "sharing", "align", "data_dir"}  # which go with others only
    assert set(others) | apart == set(RunConfig.model_fields)
    ids = {base.but(**{name: value}).run_id for name, value in others.items()}
    assert len(ids | {base.run_id}) == len(others) + 1


@settings(max_examples=15, deadline=None)
@given(SOME_FIELDS)
def test_a_config_survives_json(fields):
    config = RunConfig(**fields)
    again = RunConfig(**json.loads(config.model_dump_json()))
    assert again == config and again.run_id == config.run_id


def test_a_config_cannot_be_changed_in_place():
    config = RunConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.rank = 4


def test_but_changes_what_it_is_told_and_checks_again():
    base = RunConfig(layers=[1, 2])
    assert base.but(rank=3) == RunConfig(layers=[1, 2], rank=3) and base.rank == 8
    for bad in ({"rank": 0}, {"rnk": 3}, {"clients": 1}, {"decayed": ["R"]}):
        with pytest.raises(ConfigError):
            base.but(**bad)


def test_the_mixing_rule_is_named_for_what_it_is():
    named = {RunConfig(mixing=m).mixing_name for m in (0.3, "scheduled", "adaptive")}
    assert named == {"fixed 0.3", "scheduled 0.0->0.5", "adaptive"}
    assert RunConfig(method="fedavg").mixing_name == "none"


@pytest.mark.parametrize("task", ["", ".hidden", "__pycache", "../up", "a/b", "a\\b"])
def test_a_task_is_the_name_of_files_and_no_path(task):
    with pytest.raises(ConfigError, match="is not a file name"):
        RunConfig(source="local", data_dir="x", tasks=[task])
