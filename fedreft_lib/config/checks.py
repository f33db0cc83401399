"""Checks of a run's parameters that a type and a range cannot express: which values go together, notations, names."""

import re

from ..core.notation import parse_layers, parse_positions
from ..data.families import FAMILIES
from ..errors import did_you_mean
from .fields import Fields, steps_per_round

ALIGNS = ("fedavg", "fedreft", "fedprox", "fedadam", "lorar", "tuned", "flood", "placebo")
# The methods for which `sharing` chooses what clients send. All other methods determine that themselves.
SHARES_BY_NAME = (*ALIGNS[:-1], "fedvra", "placebo")
LEAST_HELD_OUT = 4  # of a calibrated NLL: data.grading.calibration.LEAST, which would load SciPy
WITHOUT_MAP = ("consreft", "lobireft")  # interventions that have no W
WITHOUT_IDENTITY = ("consreft",)  # no state of it leaves every hidden state unchanged


def check(config: Fields) -> None:
    """Raises ValueError, with one sentence, for the first rule that the parameters break."""
    if "R" in config.decayed:
        raise ValueError(
            'decayed must not name "R": under the orthogonal parametrisation decay shrinks the +-1 diagonal whose '
            'integer part is kept, so one step makes R zero for good; leave it at ["W", "b"]'
        )
    if set(config.decayed) - {"W", "b"}:
        raise ValueError(f'decayed must name tensors out of ["W", "b"], got {list(config.decayed)}')
    parse_positions(config.positions)
    parse_layers(config.layers, n_layers=1000)  # the model's number of layers is checked when it is known
    if not config.tasks or len(set(config.tasks)) != len(config.tasks):
        raise ValueError(f"tasks must be one or more different names, got {list(config.tasks)}")
    for task in config.tasks:
        if not re.fullmatch(r"(?!\.|__)[^/\\\0]+", task):
            raise ValueError(
                f"tasks: {task!r} is not a file name: it must not be empty, begin with . or __, or contain a slash"
            )
    if "\0" in (config.data_dir or "") + config.backbone:
        raise ValueError("data_dir and backbone must be names of folders without a NUL character")
    if (config.source == "local") != (config.data_dir is not None):
        raise ValueError(
            f'data_dir goes with source="local": got source={config.source!r}, data_dir={config.data_dir!r}'
        )
    if config.setup == "own" and config.source != "local":
        raise ValueError(
            f'setup="own" is for source="local", where each client has its own folder: got source={config.source!r}'
        )
    of_choices = config.benchmark in ("commonsense", "agreement")
    if config.scoring == "generation" and config.prompt_format != "llm_adapters" and of_choices:
        raise ValueError('scoring="generation" needs prompt_format="llm_adapters", whose answers are words')
    for task in config.tasks if config.source != "local" else ():
        if task not in FAMILIES[config.benchmark].tasks:
            known = FAMILIES[config.benchmark].tasks
            raise ValueError(f"tasks: {config.benchmark} has no task {task!r}{did_you_mean(task, known)}")
    if config.method not in ("local", "centralised") and config.clients < 2:
        raise ValueError(f"method {config.method} needs at least 2 clients: with one there are no others")
    if config.setup == "distinct" and config.clients < len(config.tasks):
        raise ValueError(
            f'clients: setup="distinct" needs one for each of {len(config.tasks)} tasks, got {config.clients}'
        )
    lora = config.intervention == "lora"
    if config.method == "fedit" and not lora:
        raise ValueError('method fedit is FedAvg over lora: use intervention="lora", or method="fedavg"')
    if config.method in ("fedsb", "lorafair", "alore") and config.intervention not in ("lora", "loreft"):
        raise ValueError(
            f'method {config.method} has a form over "lora" and "loreft", got intervention={config.intervention!r}'
        )
    if config.method == "flood" and config.flood_score == "energy" and config.benchmark != "glue":
        raise ValueError(
            'flood_score="energy" needs a classification head: without benchmark="glue" use "entropy" or "confidence"'
        )
    if config.method == "flood" and config.benchmark == "glue" and "stsb" in config.tasks:
        raise ValueError("method flood weighs items by the model's probabilities, and stsb, a regression, has none")
    if config.method == "fedhl" and config.intervention in WITHOUT_MAP:
        raise ValueError(
            f"method fedhl needs an edit that can be any map of its rank, and intervention={config.intervention!r} "
            "has no W"
        )
    if config.method == "fedppa":
        _check_layers_and_entropies(config)
    if config.method == "fedglomo" and config.dropout and config.glomo_momentum:
        raise ValueError("fedglomo compares gradients of one batch: use dropout=0 or glomo_momentum=0")
    if config.method == "fedglomo" and config.norm_clip is not None:
        raise ValueError("fedglomo sends differences beside its update that norm_clip does not bound: use null")
    if config.sharing not in ("full", *(("A", "B") if lora else ("R", "Wb"))):
        raise ValueError(
            f"sharing={config.sharing!r} names tensors that intervention={config.intervention!r} does not have"
        )
    if config.sharing != "full" and config.method not in SHARES_BY_NAME:
        raise ValueError(
            f"sharing is a choice of {', '.join(SHARES_BY_NAME)}; {config.method} itself determines what it sends"
        )
    if config.head == "shared" and config.method not in SHARES_BY_NAME:
        raise ValueError(f'head="shared" is for {", ".join(SHARES_BY_NAME)}; with {config.method} use "averaged"')
    if config.align and (lora or config.sharing != "full" or config.method not in ALIGNS):
        raise ValueError(f'align turns whole interventions: it goes with {", ".join(ALIGNS)} and sharing="full"')
    if config.method == "fedvra" and config.norm_clip is not None:
        raise ValueError("norm_clip would change an update, and not its client's dual: with fedvra leave it at null")
    if config.method == "fedvra" and config.vra_a and not config.vra_gamma:
        raise ValueError("vra_gamma must be above 0: without the penalty the dual of fedvra has no meaning")
    if lora and (not config.targets or len(set(config.targets)) != len(config.targets)):
        raise ValueError(f"targets must be one or more different names, got {list(config.targets)}")
    if not lora and config.init == "identity" and config.intervention in WITHOUT_IDENTITY:
        raise ValueError(f'intervention {config.intervention} has no identity start: use init="random"')
    if config.benchmark == "agreement" and config.setup == "own":
        raise ValueError('benchmark="agreement" deals texts and labels them: use another setup than "own"')
    if config.objective == "choice" and not of_choices and (config.source != "local" or config.benchmark == "glue"):
        raise ValueError(f'objective="choice" needs questions with choices, and {config.benchmark} has none')
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.device):
        raise ValueError(f'device must be "auto", "cpu", "mps" or "cuda" (or "cuda:1"), got {config.device!r}')
    if config.engine == "cohort" and config.dropout:
        raise ValueError(
            'engine="cohort" draws no dropout, since each client has its own draws: use engine="one_by_one" or '
            f"dropout=0, got dropout={config.dropout}"
        )
    at_last = not lora and parse_positions(config.positions) == (0, 1) and config.objective == "choice"
    if config.engine == "last_token" and (not at_last or config.dropout):
        raise ValueError(
            'engine="last_token" is for interventions at positions="l1", objective="choice" and dropout=0; got '
            f"intervention={config.intervention!r}, positions={config.positions!r}, objective={config.objective!r}, "
            f"dropout={config.dropout}"
        )
    for name, of in (("ranks", config.ranks), ("active", config.active), ("client_layers", config.client_layers)):
        if of and len(of) != config.clients:
            raise ValueError(f"{name} must have an entry for each of {config.clients} clients, got {list(of)}")
    for name, of, most in (("ranks", config.ranks, config.rank), ("active", config.active, config.experts)):
        if of and not 1 <= min(of) <= max(of) <= most:
            limit = "rank" if name == "ranks" else "experts"
            raise ValueError(f"{name} must be from 1 to {limit} = {most}, got {list(of)}")
    for layers in config.client_layers:
        parse_layers(layers, n_layers=1000)
    if config.ins_top > config.ins_pool:
        raise ValueError(f"ins_top must be at most ins_pool = {config.ins_pool}, got {config.ins_top}")
    if config.ins_form == "scale" and lora:
        raise ValueError('ins_form="scale" edits the residual stream: it goes with interventions, not with lora')
    steps = steps_per_round(config.train_size, config)
    if config.method == "fedgmm" and steps < config.gmm_learners:
        raise ValueError(
            f"gmm_learners must be at most a round's steps, which they divide: got {config.gmm_learners} and {steps}"
        )
    _check_participation(config)
    if len(config.mixing_range) != 2:
        raise ValueError(f"mixing_range must be two shares, first and last, got {list(config.mixing_range)}")
    if config.mixing == "adaptive" and config.adaptive_by == "calibrated":
        if config.benchmark != "glue" and config.objective != "choice":
            raise ValueError(
                'adaptive_by="calibrated" compares choices or classes: it needs objective="choice" or glue'
            )
        if config.held_out_size < LEAST_HELD_OUT:
            raise ValueError(
                f'adaptive_by="calibrated" needs held_out_size of at least {LEAST_HELD_OUT}, got {config.held_out_size}'
            )
    if not config.mixing_grid:
        raise ValueError("mixing_grid must have at least one candidate")


def _check_layers_and_entropies(config: Fields) -> None:
    """What fedppa needs."""
    for own in config.client_layers if config.layers != "all" else ():
        of = parse_layers(config.layers, n_layers=1000)
        if own != "all" and not set(parse_layers(own, n_layers=1000)) <= set(of):
            raise ValueError(f'client_layers: {own!r} must be among layers = {config.layers!r}, or "all" of them')
    if config.ppa_weights == "labels" and config.benchmark not in ("commonsense", "agreement", "glue"):
        raise ValueError(
            f'ppa_weights="labels" needs classes or choices, and {config.benchmark} has neither: use "predictions" or '
            '"uniform"'
        )
    if config.ppa_weights != "uniform" and config.benchmark == "glue" and "stsb" in config.tasks:
        raise ValueError('stsb, a regression, has no classes for an entropy: with fedppa use ppa_weights="uniform"')


def _check_participation(config: Fields) -> None:
    events = {name: getattr(config, name) for name in ("joins", "leaves", "drops", "late")}
    for name, pairs in events.items():
        for client, round in pairs:
            if not (1 <= client <= config.clients and 1 <= round <= max(config.rounds, 1)):
                raise ValueError(
                    f"{name}: [{client}, {round}] must be a client from 1 to {config.clients} and a round from 1 to "
                    f"{config.rounds}"
                )
        once = {client for client, _ in pairs} if name in ("joins", "leaves") else set(pairs)
        if len(once) < len(pairs):
            raise ValueError(f"{name} names something twice: {[list(pair) for pair in pairs]}")
    if config.method == "centralised" and (any(events.values()) or config.sampled or config.hostile or config.unseen):
        raise ValueError(
            "method centralised has one learner: nobody is sampled, joins, leaves, is late, hostile or unseen"
        )
    if config.unseen and (config.hostile or config.clients - config.unseen < 2):
        raise ValueError(
            f"unseen must leave 2 of clients = {config.clients}, and goes without hostile clients, got {config.unseen}"
        )
    there = config.clients - config.unseen
    those = f"clients{' - unseen' if config.unseen else ''} = {there}"
    if config.sampled is not None and config.sampled > there:
        raise ValueError(f"sampled must be at most {those}, got {config.sampled}")
    if config.hostile and config.hostile >= config.clients:
        raise ValueError(f"hostile must be below clients = {config.clients}, got {config.hostile}")
    if config.min_clients > there and config.method not in ("local", "centralised"):
        raise ValueError(f"min_clients must be at most {those}, got {config.min_clients}")
