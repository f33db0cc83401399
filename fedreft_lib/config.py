"""Every parameter of a run: its symbol in the paper, its range and the reason for its default.

The paper's public sources do not print lambda, the rounds, the local epochs, the learning rate or the positions
(they are the workbook's, and marked "reconstruction"); what they do print is marked "paper".
"""

import hashlib
import json
import re
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from .aggregation import KINDS as AGGREGATIONS
from .errors import ConfigError, did_you_mean
from .hostile import KINDS as ATTACK_KINDS
from .interventions import INTERVENTIONS
from .rotation import RETRACTIONS
from .sites import parse_layers, parse_positions
from .tasks import FAMILIES


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # YAML and papermill know lists only


def _pairs(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list | tuple) else value


def param(default: Any, reason: str, *, symbol: str = "", **bounds: Any) -> Any:
    """A field of RunConfig: default, why it is so, the paper's symbol, and pydantic's bounds."""
    return Field(default, description=reason, json_schema_extra={"symbol": symbol}, **bounds)


# The methods whose clients send what `sharing` says; of the others it is part of the method what is sent.
SHARES_BY_NAME = ("fedavg", "fedreft", "fedprox", "fedadam")
Strings = Annotated[tuple[str, ...], BeforeValidator(_tuple)]
Numbers = Annotated[tuple[int, ...], BeforeValidator(_tuple)]
Share = Annotated[float, Field(ge=0, le=1)]
Shares = Annotated[tuple[Share, ...], BeforeValidator(_tuple)]
Events = Annotated[tuple[tuple[int, int], ...], BeforeValidator(_pairs)]


class RunConfig(BaseModel):
    """One run of one federation: `RunConfig(mixing=0.3)` is valid, and so is any other subset of the fields.

    Raises ConfigError, before anything is loaded, for a name that does not exist (with the nearest that does), a
    wrong type, NaN, or a value out of its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # What is trained
    backbone: str = param("smollm2-135m-instruct", "packaged name, local folder, or hub name; frozen throughout")
    dtype: Literal["auto", "float32", "bfloat16"] = param("auto", "of the backbone; states are always float32")
    device: str = param("auto", "a GPU where there is one")
    intervention: Literal[(*INTERVENTIONS, "lora")] = param(
        "loreft", "paper: LoReFT; lora is what the federated baselines train", symbol="Phi"
    )
    rank: int = param(8, "paper: 8 for commonsense, 1 for GLUE", symbol="r", ge=1, le=512)
    layers: str | Numbers = param("all", 'paper: all; "20-29" or a list restricts them', symbol="l")
    positions: str = param("f7+l7", "ReFT's choice for reasoning tasks; not printed by FedReFT", symbol="P")
    tied: bool = param(
        False, "one intervention for prefix and suffix; the paper's counts imply untied", symbol="tie-phi"
    )
    init: Literal["identity", "random"] = param(
        "identity", 'reconstruction: starts at the untrained backbone; "random" is pyreft\'s start'
    )

    targets: Strings = param(
        ("q_proj", "v_proj"), "ends of the paths of lora's linear modules, as in peft; FedSA-LoRA's and FLoRA's choice"
    )
    lora_alpha: float = param(16.0, "the scale of lora is this over the rank; the baselines' usual value", gt=0)
    dropout: float = param(
        0.0, "in training: on edited hidden states, lora's inputs and the head; ReFT: per task", ge=0, lt=1
    )

    # On what
    benchmark: Literal[tuple(FAMILIES)] = param("commonsense", "the family of tasks")
    tasks: Strings = param(
        FAMILIES["commonsense"].default_tasks, "paper: eight; the default is a subset, another for each family"
    )
    source: Literal["packaged", "hub", "local", "synthetic"] = param("packaged", "where the questions come from")
    data_dir: str | None = param(None, 'the folder that source="local" reads')
    prompt_format: Literal["llm_adapters", "plain"] = param(
        "plain", 'paper: LLM-Adapters\' "the correct answer is answer1"; plain suits models of this size'
    )
    scoring: Literal["likelihood", "likelihood_per_character", "generation"] = param(
        "likelihood_per_character", "how an answer is read off the model; the paper generates"
    )
    max_new_tokens: int = param(
        32, "of a generation; ReFT: 32 for commonsense, more for chains of thought", ge=1, le=4096
    )
    max_length: int = param(
        256, "tokens; a longer prompt loses its beginning, down to half of them, and then an answer its end",
        ge=16, le=32768,
    )  # fmt: skip
    setup: Literal["distinct", "mixed", "iid", "dirichlet", "own"] = param(
        "distinct",
        "paper: Distinct Task (one task a client) and Mixed Task (subsets of the union); own: what each client has",
        symbol="DT, MT",
    )
    alpha: float = param(0.5, 'concentration of setup="dirichlet": small is uneven', gt=0, le=1000)
    clients: int = param(4, "with 3, the geometric median of the others is their mean", symbol="C", ge=1, le=10000)
    train_size: int = param(
        128, 'training questions of each client; setup="own": at most, as all three', symbol="n_k", ge=1
    )
    held_out_size: int = param(16, "questions of each client that adaptive mixing looks at; never trained on", ge=1)
    test_size: int = param(100, "test questions of each client", ge=1)
    union_size: int = param(
        0, "questions of the union of all tests that every client answers at the end; 0: none", ge=0
    )

    # How a client trains
    local_epochs: int = param(1, "passes over the client's data each round; reconstruction", symbol="E", ge=1)
    local_steps: int | None = param(None, "optimiser steps each round, in place of epochs", ge=1)
    batch_size: int = param(8, "sequences a step", ge=1)
    lr: float = param(2e-3, "AdamW; ReFT's commonsense runs use 9e-4 with many more steps", gt=0, le=1)
    schedule: Literal["linear", "constant"] = param("linear", "of lr within a round, as where a trainer is made anew")
    warmup: float = param(0.1, "share of a round's steps in which lr rises; ReFT: 0.1", ge=0, lt=1)
    engine: Literal["auto", "one_by_one", "cohort"] = param(
        "auto", "whether clients train one after another or several in one pass; equal but for rounding, see engine.py"
    )
    weight_decay: float = param(0.0, "AdamW's, on the tensors in `decayed`; ReFT: 0", ge=0, le=1)
    decayed: Strings = param(("W", "b"), "R is refused: see the error")
    clip: float = param(1.0, "largest gradient norm of a step", gt=0)

    # What is exchanged
    method: Literal[
        "local", "fedavg", "fedreft", "centralised", "fedit", "fedprox", "fedadam", "ffa", "fedsa", "fedalt", "feddpa",
        "flora", "fedsb",
    ] = param("fedreft", "who learns from whom, see fedreft_lib.strategies")  # fmt: skip
    sharing: Literal["full", "R", "Wb", "A", "B"] = param(
        "full", "the tensors that are sent; paper: full intervention sharing. R, Wb of interventions; A, B of lora"
    )
    head: Literal["averaged", "shared", "private"] = param(
        "averaged", "a classification head: the mean of all, or treated like the rest, or never sent; not printed"
    )
    align: bool = param(
        False, "turn each client's R, W, b (an equal intervention) towards the common start before it is sent"
    )
    aggregation: Literal[AGGREGATIONS] = param(
        "geometric_median", "of the others, for fedreft; paper: geometric median by Weiszfeld", symbol="ABM"
    )
    byzantine: int = param(1, "hostile clients among the others that trimmed mean and Krum are to withstand", ge=0)
    mixing: Share | Literal["scheduled", "adaptive"] = param(
        0.3, "share of the others' aggregate that a client takes in; its rule is not printed", symbol="lambda"
    )
    mixing_range: Shares = param((0.0, 0.5), 'first and last round\'s lambda of mixing="scheduled", linear between')
    mixing_grid: Shares = param(
        (0.0, 0.1, 0.25, 0.5, 0.75, 1.0), 'the candidates of mixing="adaptive"; reconstruction of the TTC-inspired rule'
    )
    retraction: Literal[RETRACTIONS] = param("polar", "how R is made orthonormal again after mixing; reconstruction")
    proximal_mu: float = param(0.01, "fedprox: weight of the distance to the round's start", symbol="mu", ge=0)
    server_lr: float = param(1e-3, "fedadam: the server's step", symbol="eta", ge=0)
    server_beta1: float = param(0.9, "fedadam", ge=0, lt=1)
    server_beta2: float = param(0.99, "fedadam", ge=0, lt=1)
    server_tau: float = param(1e-3, "fedadam: adaptivity", symbol="tau", gt=0)
    dpa_share: Share = param(0.5, "feddpa: the local branch's share in training", symbol="a")
    dpa_weighting: Literal["fixed", "instance", "instance_reversed"] = param(
        "instance", "feddpa: the local branch's share in a test item; see strategies.feddpa"
    )
    dpa_w_max: Share = param(0.5, "feddpa: the largest instance-wise share", symbol="w_max")

    # Who takes part, who means harm, and what the server does about it
    sampled: int | None = param(None, "clients that are drawn to take part in a round; none given: all", ge=2)
    joins: Events = param((), "[client, round] pairs: the round in which a client joins; from 1, see participation")
    leaves: Events = param((), "[client, round] pairs: a client's last round")
    drops: Events = param((), "[client, round] pairs: it trains, and nothing arrives")
    late: Events = param((), "[client, round] pairs: its update arrives in the round after")
    hostile: int = param(0, "how many clients, the last ones, send what `attack` says", symbol="f", ge=0)
    attack: Literal[ATTACK_KINDS] = param("sign_flip", "what they send, see hostile")
    attack_scale: float = param(5.0, "the length of a hostile step, in those that the client would have made", gt=0)
    norm_limit: float = param(
        30.0, "an update of more than so many times the usual norm is set aside; raise it for very uneven clients", gt=1
    )
    norm_clip: float | None = param(
        None, "longer updates are shortened to so many times the median norm before they are aggregated", gt=0
    )
    min_clients: int = param(2, "a round with fewer admitted updates stops the run, which can then go on", ge=2)
    rounds: int = param(3, "reconstruction", symbol="T", ge=0)
    eval_every: int = param(0, "rounds between evaluations; 0: before the first and after the last round", ge=0)
    seed: int = param(0, "fixes partition, batches and start", ge=0, lt=2**32)
    experiment: str = param("", "a label in the results; changes nothing")

    def __init__(self, **values: Any):
        values = {**_family_defaults(values), **values}
        values = {name: 0.0 if value == 0 and type(value) is float else value for name, value in values.items()}  # -0.0
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_sentence(error)) from None

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        if "R" in self.decayed:
            raise ValueError(
                'decayed must not name "R": under the orthogonal parametrisation decay shrinks the +-1 diagonal whose '
                'integer part is kept, so one step makes R zero for good; leave it at ["W", "b"]'
            )
        if set(self.decayed) - {"W", "b"}:
            raise ValueError(f'decayed must name tensors out of ["W", "b"], got {list(self.decayed)}')
        parse_positions(self.positions)
        parse_layers(self.layers, n_layers=1000)  # the bounds of the real model are checked once it is there
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks must be one or more different names, got {list(self.tasks)}")
        for task in self.tasks:
            if not re.fullmatch(r"(?!\.|__)[^/\\\0]+", task):
                raise ValueError(
                    f"tasks: {task!r} is no name of files: it must not be empty, begin with . or __, or hold a slash"
                )
        if "\0" in (self.data_dir or "") + self.backbone:
            raise ValueError("data_dir and backbone must be names of folders, without a character NUL")
        if (self.source == "local") != (self.data_dir is not None):
            raise ValueError(
                f'data_dir goes with source="local": got source={self.source!r}, data_dir={self.data_dir!r}'
            )
        if self.setup == "own" and self.source != "local":
            raise ValueError(
                f'setup="own" is for source="local", where each client has its own folder: got source={self.source!r}'
            )
        if self.scoring == "generation" and self.prompt_format != "llm_adapters" and self.benchmark == "commonsense":
            raise ValueError('scoring="generation" needs prompt_format="llm_adapters", whose answers are words')
        for task in self.tasks if self.source != "local" else ():
            if task not in FAMILIES[self.benchmark].tasks:
                known = FAMILIES[self.benchmark].tasks
                raise ValueError(f"tasks: {self.benchmark} has no task {task!r}{did_you_mean(task, known)}")
        if self.method not in ("local", "centralised") and self.clients < 2:
            raise ValueError(f"method {self.method} needs at least 2 clients: with one there are no others")
        if self.setup == "distinct" and self.clients < len(self.tasks):
            raise ValueError(
                f'clients: setup="distinct" needs one for each of {len(self.tasks)} tasks, got {self.clients}'
            )
        lora = self.intervention == "lora"
        if self.method == "fedit" and not lora:
            raise ValueError('method fedit is FedAvg over lora: use intervention="lora", or method="fedavg"')
        if self.method == "fedsb" and self.intervention not in ("lora", "loreft"):
            raise ValueError(
                f'method fedsb has a form over "lora" and "loreft", got intervention={self.intervention!r}'
            )
        if self.sharing not in ("full", *(("A", "B") if lora else ("R", "Wb"))):
            raise ValueError(f"sharing={self.sharing!r} names tensors that intervention={self.intervention!r} has not")
        if self.sharing != "full" and self.method not in SHARES_BY_NAME:
            raise ValueError(
                f"sharing is a choice of {', '.join(SHARES_BY_NAME)}; {self.method} says itself what it sends"
            )
        if self.head == "shared" and self.method not in SHARES_BY_NAME:
            raise ValueError(f'head="shared" is for {", ".join(SHARES_BY_NAME)}; with {self.method} use "averaged"')
        if self.align and (lora or self.sharing != "full" or self.method not in SHARES_BY_NAME):
            raise ValueError(
                f'align turns whole interventions: it goes with {", ".join(SHARES_BY_NAME)} and sharing="full"'
            )
        if lora and (not self.targets or len(set(self.targets)) != len(self.targets)):
            raise ValueError(f"targets must be one or more different names, got {list(self.targets)}")
        if not lora and self.init == "identity" and not INTERVENTIONS[self.intervention].has_identity:
            raise ValueError(f'intervention {self.intervention} has no identity start: use init="random"')
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ValueError(f'device must be "auto", "cpu", "mps" or "cuda" (or "cuda:1"), got {self.device!r}')
        if self.engine == "cohort" and self.dropout:
            raise ValueError(
                'engine="cohort" draws no dropout, since each client has draws of its own: use engine="one_by_one" or '
                f"dropout=0, got dropout={self.dropout}"
            )
        self._check_participation()
        if len(self.mixing_range) != 2:
            raise ValueError(f"mixing_range must be two shares, first and last, got {list(self.mixing_range)}")
        if not self.mixing_grid:
            raise ValueError("mixing_grid must have at least one candidate")
        return self

    def _check_participation(self) -> None:
        events = {name: getattr(self, name) for name in ("joins", "leaves", "drops", "late")}
        for name, pairs in events.items():
            for client, round in pairs:
                if not (1 <= client <= self.clients and 1 <= round <= max(self.rounds, 1)):
                    raise ValueError(
                        f"{name}: [{client}, {round}] must be a client from 1 to {self.clients} and a round from 1 to "
                        f"{self.rounds}"
                    )
            once = {client for client, _ in pairs} if name in ("joins", "leaves") else set(pairs)
            if len(once) < len(pairs):
                raise ValueError(f"{name} names something twice: {[list(pair) for pair in pairs]}")
        if self.method == "centralised" and (any(events.values()) or self.sampled or self.hostile):
            raise ValueError("method centralised has one learner: nobody is sampled, joins, leaves, is late or hostile")
        if self.sampled is not None and self.sampled > self.clients:
            raise ValueError(f"sampled must be at most clients = {self.clients}, got {self.sampled}")
        if self.hostile and self.hostile >= self.clients:
            raise ValueError(f"hostile must be below clients = {self.clients}, got {self.hostile}")
        if self.min_clients > self.clients and self.method not in ("local", "centralised"):
            raise ValueError(f"min_clients must be at most clients = {self.clients}, got {self.min_clients}")

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any], *, also: Iterable[str] = ()) -> "RunConfig":
        """The parameters cell as a RunConfig: call it right after that cell, with `globals()`.

        Every public plain value in the namespace must be a field or be named in `also` (a notebook's own
        parameters, like `seeds`, which are checked too), so that a misspelt papermill parameter is refused and not just
        passed over. Constants (IN_CAPITALS) that were imported before are left alone, unless one is a field's name.
        Of what the notebook goes through itself, `setup` where it has `setups`, the first is taken.
        """
        from . import notebook_parameters  # which reads this file

        also = set(also)
        plain = (str, int, float, list, tuple, dict, types.NoneType)
        kernel = {"In", "Out"}  # IPython's own
        values = {
            name: value
            for name, value in namespace.items()
            if (isinstance(value, plain) or name in cls.model_fields)  # a field of another type is refused below
            and not (name.startswith("_") or name in kernel or name in also)
            and not (name.isupper() and name.lower() not in cls.model_fields)
        }
        unknown = [name for name in values if name not in cls.model_fields]
        if unknown:
            raise ConfigError(_unknown_name(unknown[0], [*cls.model_fields, *also]))
        own = {name: namespace[name] for name in namespace if name in also}
        notebook_parameters.check(own, by_hand=True)
        for name in notebook_parameters.singular(also, list(values)):
            value, several = values.pop(name), own.get(f"{name}s", ())
            if isinstance(value, str | int | float) and value not in several:  # else a loop of the notebook has left it
                raise ConfigError(f"this notebook has no parameter {name!r}: it goes through {name}s, got {several!r}")
        return cls(**values, **notebook_parameters.first(own))

    def but(self, **changes: Any) -> "RunConfig":
        """This config with some fields changed, checked again."""
        return RunConfig(**{**self.model_dump(), **changes})

    @property
    def run_id(self) -> str:
        """A readable name that is different for every different config."""
        method = f"{self.method}-{self.aggregation}-{self.mixing}" if self.method == "fedreft" else self.method
        digest = hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.setup}-{method}-seed{self.seed}-{digest}"

    @property
    def mixing_name(self) -> str:
        """How the mixing weight is set, named for what it is."""
        if self.method != "fedreft":
            return "none"
        if self.mixing == "scheduled":
            return "scheduled {}->{}".format(*self.mixing_range)
        return self.mixing if isinstance(self.mixing, str) else f"fixed {self.mixing}"


def _family_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults that depend on the family of tasks."""
    family = (
        FAMILIES.get(values.get("benchmark", "commonsense")) if isinstance(values.get("benchmark", ""), str) else None
    )
    if family is None:
        return {}
    return {"tasks": family.default_tasks, "backbone": family.default_backbone}


def _unknown_name(name: str, known: Iterable[str]) -> str:
    return f"there is no parameter {name!r}" + did_you_mean(name.lower(), known, "see RunConfig's fields")


def _sentence(error: ValidationError) -> str:
    """pydantic's list of findings as one sentence about the first."""
    finding = error.errors()[0]
    name = str(finding["loc"][0]) if finding["loc"] else ""
    if finding["type"] == "extra_forbidden":
        return _unknown_name(name, RunConfig.model_fields)
    if finding["type"] == "value_error":
        return str(finding["ctx"]["error"])
    return f"{name}: {_wanted(error.errors())}, got {finding['input']!r}"


def _wanted(findings: list[dict]) -> str:
    """What the first finding asks for, and those of the same value."""
    alternatives = [e for e in findings if e["loc"][:1] == findings[0]["loc"][:1]]
    said = [str(e["ctx"]["error"]) if e["type"] == "value_error" else e["msg"] for e in alternatives]
    return " or ".join(dict.fromkeys(each[0].lower() + each[1:] for each in said)).replace("valid tuple", "valid list")


def describe() -> str:
    """Every parameter: name, symbol in the paper, default, and the reason for it."""
    lines = []
    for name, field in RunConfig.model_fields.items():
        symbol = field.json_schema_extra["symbol"]
        lines.append(f"{name} = {field.default!r}{f'   [{symbol}]' if symbol else ''}\n    {field.description}")
    return "\n".join(lines)
