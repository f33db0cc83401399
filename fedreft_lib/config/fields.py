"""Every parameter of a run: its group, its symbol in the paper, its range and the reason for its default.

The paper's public sources do not print lambda, the rounds, the local epochs, the learning rate or the positions. The
defaults of these are the workbook's. In the reasons, "paper" marks what the sources print; "reconstruction" and "not
printed" mark what they do not.

Names of interventions, aggregations, attacks and methods are repeated here. So a config is checked without torch, which
takes seconds to import. Tests compare the lists with the code.
"""

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..data.families import FAMILIES
from ..errors import did_you_mean

INTERVENTIONS = ("loreft", "direft", "noreft", "orthonormal_direft", "consreft", "lobireft")
AGGREGATIONS = ("geometric_median", "mean", "trimmed_mean", "coordinate_median", "krum", "multi_krum")
METHODS = (
    "local", "fedavg", "fedreft", "centralised", "fedit", "fedprox", "fedadam", "ffa", "fedsa", "fedalt", "feddpa",
    "flora", "fedsb", "lorar", "lorafair", "tuned", "flood", "fedvra", "fedhl", "fedppa", "fedins", "fedgmm", "alore",
    "fedglomo", "flame", "placebo",
)  # fmt: skip
ATTACKS = (
    "sign_flip", "noise", "collude", "label_flip", "one_nan", "one_inf", "norm_1e30", "wrong_shape",
    "broadcastable_shape", "integer_dtype", "complex_dtype", "missing_key", "extra_key", "negative_count", "nan_count",
    "huge_count",
)  # fmt: skip
GROUPS = {
    "model": "The frozen model",
    "state": "What a client trains",
    "start": "Where a client starts",
    "data": "The data",
    "tests": "How it is tested",
    "training": "How a client trains",
    "engine": "How it is computed",
    "exchange": "What is exchanged",
    "methods": "What single methods need",
    "participation": "Who takes part, who is hostile, and how the server handles it",
    "rounds": "How long, and what is recorded",
}


def as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # YAML and papermill have lists only


def _pairs(value: Any) -> Any:
    return tuple(map(as_tuple, value)) if isinstance(value, list | tuple) else value


def param(group: str, default: Any, reason: str, *, symbol: str = "", **bounds: Any) -> Any:
    """A parameter: its group in GROUPS, default, the reason for it, the paper's symbol, and pydantic's bounds."""
    return Field(default, description=reason, json_schema_extra={"symbol": symbol, "group": group}, **bounds)


Strings = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
Numbers = Annotated[tuple[int, ...], BeforeValidator(as_tuple)]
Share = Annotated[float, Field(ge=0, le=1)]
Shares = Annotated[tuple[Share, ...], BeforeValidator(as_tuple)]
Events = Annotated[tuple[tuple[int, int], ...], BeforeValidator(_pairs)]


class Fields(BaseModel):
    """The parameters, each checked by itself; `RunConfig` also checks them together."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # What is trained
    backbone: str = param(
        "model", "smollm2-135m-instruct", "packaged name, local folder, or hub name; frozen throughout"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = param("model", "auto", "of the backbone; states are always float32")
    device: str = param("model", "auto", "a GPU where there is one")
    intervention: Literal[(*INTERVENTIONS, "lora")] = param(
        "state", "loreft", "paper: LoReFT; lora is what the federated baselines train", symbol="Phi"
    )
    rank: int = param("state", 8, "paper: 8 for commonsense, 1 for GLUE", symbol="r", ge=1, le=512)
    layers: str | Numbers = param("state", "all", 'paper: all; "20-29" or a list restricts them', symbol="l")
    positions: str = param("state", "f7+l7", "ReFT's choice for reasoning tasks; not printed by FedReFT", symbol="P")
    tied: bool = param(
        "state", False, "one intervention for prefix and suffix; the paper's counts imply untied", symbol="tie-phi"
    )
    init: Literal["identity", "random"] = param(
        "start", "identity", 'reconstruction: starts at the untrained backbone; "random" is pyreft\'s start'
    )

    targets: Strings = param(
        "state",
        ("q_proj", "v_proj"),
        "ends of the paths of lora's linear modules, as in peft; FedSA-LoRA's and FLoRA's choice",
    )
    lora_alpha: float = param(
        "state", 16.0, "the scale of lora is this over the rank; the baselines' usual value", gt=0
    )
    dropout: float = param(
        "training", 0.0, "in training: on edited hidden states, lora's inputs and the head; ReFT: per task", ge=0, lt=1
    )

    # The data
    benchmark: Literal[tuple(FAMILIES)] = param("data", "commonsense", "the family of tasks")
    tasks: Strings = param(
        "data", FAMILIES["commonsense"].default_tasks, "paper: eight; the default is a subset, another for each family"
    )
    source: Literal["packaged", "hub", "local", "synthetic"] = param(
        "data", "packaged", "where the questions come from"
    )
    data_dir: str | None = param("data", None, 'the folder that source="local" reads')
    prompt_format: Literal["llm_adapters", "plain"] = param(
        "data", "plain", 'paper: LLM-Adapters\' "the correct answer is answer1"; plain suits models of this size'
    )
    scoring: Literal["likelihood", "likelihood_per_character", "generation"] = param(
        "tests", "likelihood_per_character", "how the model's answer is found; the paper generates it"
    )
    max_new_tokens: int = param(
        "tests", 32, "of a generation; ReFT: 32 for commonsense, more for chains of thought", ge=1, le=4096
    )
    max_length: int = param(
        "data",
        256, "tokens; a longer prompt loses its beginning, down to half of them, then the answer its end",
        ge=16, le=32768,
    )  # fmt: skip
    setup: Literal["distinct", "mixed", "iid", "dirichlet", "own"] = param(
        "data",
        "distinct",
        "paper: Distinct Task (one task a client) and Mixed Task (subsets of the union); own: what each client has",
        symbol="DT, MT",
    )
    agreement: float = param(
        "data",
        0.7,
        'benchmark="agreement": the share of labels on which two clients agree; 1/2: unrelated tasks, 1: the same',
        symbol="a",
        ge=0.5,
        le=1,
    )
    objective: Literal["answer", "choice"] = param(
        "data",
        "answer",
        "what is made likely: the correct answer's tokens among all tokens (ReFT), or that choice among the choices",
    )
    alpha: float = param("data", 0.5, 'concentration of setup="dirichlet": small is uneven', gt=0, le=1000)
    clients: int = param(
        "data", 4, "with 3, the geometric median of the others is their mean", symbol="C", ge=1, le=10000
    )
    train_size: int = param(
        "data", 128, 'training questions of each client; setup="own": at most, as all three', symbol="n_k", ge=1
    )
    held_out_size: int = param(
        "tests", 16, "questions of each client that adaptive mixing looks at; never trained on", ge=1
    )
    test_size: int = param("tests", 100, "test questions of each client", ge=1)
    union_size: int = param(
        "tests", 0, "questions from all tests together that every client answers at each evaluation; 0: none", ge=0
    )

    # How a client trains
    local_epochs: int = param(
        "training", 1, "passes over the client's data each round; reconstruction", symbol="E", ge=1
    )
    local_steps: int | None = param("training", None, "optimiser steps each round, in place of epochs", ge=1)
    batch_size: int = param("training", 8, "sequences a step", ge=1)
    lr: float = param("training", 2e-3, "AdamW; ReFT's commonsense runs use 9e-4 with many more steps", gt=0, le=1)
    schedule: Literal["linear", "constant"] = param(
        "training", "linear", "of lr after its warm-up: it falls to 0, or stays"
    )
    schedule_over: Literal["round", "rounds"] = param(
        "training", "rounds", "what lr falls over: all rounds of the run, or a round, again and again"
    )
    warmup: float = param("training", 0.1, "share of the schedule's steps in which lr rises; ReFT: 0.1", ge=0, lt=1)
    engine: Literal["auto", "one_by_one", "cohort", "last_token"] = param(
        "engine",
        "auto",
        "whether clients train one after another or several in one pass; equal but for rounding, see engine.py",
    )
    weight_decay: float = param("training", 0.0, "AdamW's, on the tensors in `decayed`; ReFT: 0", ge=0, le=1)
    decayed: Strings = param("training", ("W", "b"), "R is refused: see the error")
    clip: float = param("training", 1.0, "largest gradient norm of a step", gt=0)
    optimiser: Literal["adamw", "sgd"] = param("training", "adamw", "of local training; some methods' proofs need sgd")

    # What is exchanged
    method: Literal[METHODS] = param("exchange", "fedreft", "who learns from whom, see fedreft_lib.methods")
    sharing: Literal["full", "R", "Wb", "A", "B"] = param(
        "exchange",
        "full",
        "the tensors that are sent; paper: full intervention sharing. R, Wb of interventions; A, B of lora",
    )
    head: Literal["averaged", "shared", "private"] = param(
        "exchange",
        "averaged",
        "a classification head: the mean of all, or treated like the rest, or never sent; not printed",
    )
    align: bool = param(
        "exchange",
        False,
        "turn each client's R, W, b (an equal intervention) towards the common start before it is sent",
    )
    aggregation: Literal[AGGREGATIONS] = param(
        "exchange", "geometric_median", "of the others, for fedreft; paper: geometric median by Weiszfeld", symbol="ABM"
    )
    byzantine: int = param(
        "exchange", 1, "hostile clients among the others that trimmed mean and Krum are to withstand", ge=0
    )
    mixing: Share | Literal["scheduled", "adaptive"] = param(
        "exchange",
        0.3,
        "share of the others' aggregate that a client takes in; its rule is not printed",
        symbol="lambda",
    )
    adaptive_by: Literal["loss", "calibrated"] = param(
        "exchange",
        "loss",
        'mixing="adaptive": what decides, the loss in training or the calibrated NLL of the choices (data.grading)',
    )
    mixing_range: Shares = param(
        "exchange", (0.0, 0.5), 'first and last round\'s lambda of mixing="scheduled", linear between'
    )
    mixing_grid: Shares = param(
        "exchange",
        (0.0, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0),
        'the candidates of mixing="adaptive"; reconstruction of the TTC-inspired rule',
    )
    retraction: Literal["polar", "qr", "raw"] = param(
        "exchange", "polar", "how R is made orthonormal again after mixing; reconstruction"
    )
    server_lr: float = param("exchange", 1e-3, "fedadam: the server's step", symbol="eta", ge=0)
    server_beta1: float = param("exchange", 0.9, "fedadam", ge=0, lt=1)
    server_beta2: float = param("exchange", 0.99, "fedadam", ge=0, lt=1)
    server_tau: float = param("exchange", 1e-3, "fedadam: adaptivity", symbol="tau", gt=0)
    dpa_share: Share = param("training", 0.5, "feddpa: the local branch's share in training", symbol="a")
    dpa_weighting: Literal["fixed", "instance", "instance_reversed"] = param(
        "exchange", "instance", "feddpa: the local branch's share in a test item; see methods.feddpa"
    )
    dpa_w_max: Share = param("exchange", 0.5, "feddpa: the largest instance-wise share", symbol="w_max")

    # What single methods need, see methods/*.py
    proximal_mu: float = param(
        "methods", 0.01, "fedprox: weight of the distance to the round's start", symbol="mu", ge=0
    )
    ranks: Numbers = param(
        "methods", (), "fedhl: the live rank of each client, at most `rank`; (): all of them. 8, 4, 2, 1 and the like"
    )
    client_layers: Strings = param(
        "methods", (), 'fedppa: the layers that each client has, as in "2-4" or "all"; (): all of `layers`'
    )
    lorar_gain: Literal["range", "exact"] = param(
        "methods", "range", "lorar: largest minus smallest logged loss (published), or the loss before minus after"
    )
    lorar_counts: bool = param("methods", True, "lorar: example counts times loss reductions, or reductions alone")
    fair_lambda: float = param(
        "methods", 0.01, "lorafair: how much a correction costs; large: FedIT's means", symbol="lambda", ge=0
    )
    tune_steps: int | None = param(
        "methods",
        None,
        "tuned: steps of each client's own before a test; null: as many as in a round",
        symbol="tau",
        ge=0,
    )
    flood_boost: float = param(
        "methods", 1.0, "flood: how much more an unusual training item counts", symbol="beta", ge=0
    )
    flood_share: Share = param("methods", 0.2, "flood: the share of items that count as unusual", symbol="q")
    flood_tau: float = param(
        "methods", 1.0, "flood: how little the clients' confidence decides; large: example counts", symbol="tau", gt=0
    )
    flood_score: Literal["entropy", "confidence", "energy"] = param(
        "methods", "entropy", "flood: what makes an item unusual; energy needs a classification head"
    )
    vra_gamma: float = param("methods", 0.1, "fedvra: weight of its penalty", symbol="gamma", ge=0)
    vra_a: float = param("methods", 1.0, "fedvra: step of the dual; 0: FedProx", symbol="a", ge=0, lt=2)
    vra_d: float = param(
        "methods", 1.0, "fedvra: the server's factor on the mean; below 1: ridge", symbol="d", gt=0, le=1
    )
    ppa_mu: float = param(
        "methods", 0.3, "fedppa: weight of the distance to the layers' means, at its largest", symbol="mu", ge=0
    )
    ppa_growth: Literal["linear", "constant"] = param(
        "methods", "linear", "fedppa: mu s / S at step s of a round's S, or the mean of these at each step"
    )
    ppa_weights: Literal["labels", "predictions", "uniform"] = param(
        "methods", "labels", "fedppa: whose entropy weighs a client in a layer's mean; sources differ"
    )
    hl_weights: Literal["paper", "uniform", "blend"] = param(
        "methods",
        "paper",
        "fedhl: a client's weight by its squared truncation error e: 1/(e^2+eps), equal, 1/(e+mean e)",
    )
    hl_deploy: Literal["own", "full"] = param("methods", "own", "fedhl: the rank with which a client is tested")
    experts: int = param("methods", 4, "flame: experts at each place", symbol="E", ge=1, le=64)
    active: Numbers = param("methods", (), "flame: how many experts each client uses at once; (): all", symbol="k")
    flame_t: float = param(
        "methods", 2.0, "flame: power of an expert's share of tokens in its weight", symbol="t", ge=0
    )
    flame_scale: Literal["learned", "one", "ratio"] = param(
        "methods", "learned", "flame: a client's factor on its experts: trained, 1, or E / k", symbol="s"
    )
    ins_pool: int = param("methods", 8, "fedins: instances in the pool", symbol="P", ge=1, le=64)
    ins_top: int = param("methods", 3, "fedins: how many instances an item uses; at most the pool", symbol="k", ge=1)
    ins_pull: Share = param("methods", 0.1, "fedins: weight of the keys' likeness to their items", symbol="w")
    ins_form: Literal["intervention", "scale"] = param(
        "methods", "intervention", "fedins: an instance is a state of `intervention`, or scale and shift (published)"
    )
    gmm_components: int = param("methods", 2, "fedgmm: Gaussians over the prompts", symbol="M1", ge=1, le=16)
    gmm_learners: int = param("methods", 2, "fedgmm: states that are mixed", symbol="M2", ge=1, le=16)
    gmm_dims: int = param("methods", 8, "fedgmm: principal components of a prompt's embedding", ge=1, le=128)
    gmm_ridge: float = param("methods", 0.1, "fedgmm: added to the covariances' diagonals", gt=0)
    gmm_loss: Literal["sum", "mean"] = param(
        "methods", "sum", "fedgmm: an item's loss in its responsibilities: of all its answer tokens, or their mean"
    )
    gmm_covariance: Literal["official", "pooled"] = param(
        "methods", "official", "fedgmm: the server's covariance; the official mean drops the scatter between clients"
    )
    alore_blocks: int = param(
        "methods", 4, "alore: blocks of a Kronecker sum; they divide the width", symbol="n", ge=1, le=64
    )
    glomo_beta: float = param(
        "methods", 1.0, "fedglomo: the server's share of the new mean; 1: no global momentum", symbol="beta", gt=0, le=1
    )
    glomo_momentum: Share = param("methods", 1.0, "fedglomo: the clients' momentum; 0: plain SGD", symbol="m")

    # Who takes part, who is hostile, and how the server handles it
    unseen: int = param(
        "participation", 0, "the last so many clients never train; they are tested with what the others learned", ge=0
    )
    sampled: int | None = param(
        "participation", None, "number of clients drawn for each round; null: all take part", ge=2
    )
    joins: Events = param(
        "participation",
        (),
        "[client, round] pairs: the round in which a client joins; from 1, see federation.participation",
    )
    leaves: Events = param("participation", (), "[client, round] pairs: a client's last round")
    drops: Events = param("participation", (), "[client, round] pairs: it trains, and nothing arrives")
    late: Events = param("participation", (), "[client, round] pairs: its update arrives in the round after")
    hostile: int = param(
        "participation", 0, "how many clients, the last ones, send what `attack` says", symbol="f", ge=0
    )
    attack: Literal[ATTACKS] = param("participation", "sign_flip", "what they send, see federation.attacks")
    attack_scale: float = param(
        "participation", 5.0, "the length of a hostile step, as a multiple of the client's honest step", gt=0
    )
    norm_limit: float = param(
        "participation",
        30.0,
        "an update above this many times the usual norm is refused; raise it for very uneven clients",
        gt=1,
    )
    norm_clip: float | None = param(
        "participation",
        None,
        "updates are shortened to at most this many times the median norm before aggregation",
        gt=0,
    )
    min_clients: int = param(
        "participation", 2, "a round with fewer admitted updates stops the run, which can then go on", ge=2
    )
    rounds: int = param("rounds", 3, "reconstruction", symbol="T", ge=0)
    eval_every: int = param(
        "rounds", 0, "rounds between evaluations; 0: before the first and after the last round", ge=0
    )
    item_scores: bool = param(
        "rounds", False, "whether each evaluation's score of every item is kept, as Run.item_scores; for paired tests"
    )
    seed: int = param("data", 0, "fixes partition, batches and start", ge=0, lt=2**32)
    experiment: str = param("rounds", "", "a label in the results; changes nothing")


def steps_per_round(examples: int, config: Fields) -> int:
    """local_steps, or the steps of local_epochs passes over the examples."""
    return config.local_steps or config.local_epochs * math.ceil(examples / config.batch_size)


def unknown_name(name: str, known: Iterable[str]) -> str:
    return f"there is no parameter {name!r}" + did_you_mean(name.lower(), known, "see RunConfig's fields")


def wanted(findings: list[dict]) -> str:
    """What the first finding asks for, together with all findings about the same parameter."""
    alternatives = [e for e in findings if e["loc"][:1] == findings[0]["loc"][:1]]
    said = [str(e["ctx"]["error"]) if e["type"] == "value_error" else e["msg"] for e in alternatives]
    return " or ".join(dict.fromkeys(each[0].lower() + each[1:] for each in said)).replace("valid tuple", "valid list")
