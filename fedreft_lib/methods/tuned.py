"""FedAvg with fine-tuning (Collins et al., NeurIPS 2022, arXiv 2205.13692): each client trains a little before a test.

The federation learns as `base` does. A client, also one that never took part, is tested with the common state after
tau = tune_steps steps on its own training items, by default as many as in a round. That state is used for the test and
forgotten. tau = 0 is `base`.

The paper shows for linear models why the common state is a good start: with two or more local steps FedAvg finds the
clients' common subspace, and with one it need not (see workbook/linear_theory.py). The tuning has a schedule of its
own, from the full learning rate, and no penalty; over LoReFT nothing differs, since training keeps R orthonormal.
"""

from dataclasses import replace

from ..config import RunConfig
from ..config.fields import steps_per_round
from ..core.state import State
from ..model.encoding import Client
from ..model.local_training import train_client
from ..model.steered import SteeredModel
from ..seeds import derive
from .fedavg import FEDAVG
from .method import Method


def tuned(base: Method) -> Method:
    """`base`, whose clients are tested after some steps of their own. It must train in one phase."""

    def deploy(model: SteeredModel, config: RunConfig, state: State, client: Client, t: int) -> State:
        state, layout = base.deploy(model, config, state, client, t), model.layout
        steps = config.tune_steps
        if steps is None:
            steps = steps_per_round(len(client.train), config)
        if not steps:
            return state
        (phase,) = base.phases(layout.adapter_names, layout.kind, config, t)
        trains, seed = (*phase.trains, *layout.head_names), derive(config.seed, "tune", t, client.name)
        return train_client(model, state, client.train, config, seed=seed, steps=steps, trains=trains).state

    return replace(base, name="tuned", deploy=deploy)


TUNED = tuned(FEDAVG)
