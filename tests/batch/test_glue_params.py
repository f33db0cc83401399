"""05_glue: ReFT's hyperparameters at the paper's settings, and every task of every profile is a valid run."""

import pytest

from fedreft_lib import RunConfig
from fedreft_lib.batch.jobs import parameters_of, plan, profiles
from fedreft_lib.data.glue import PACKAGED_SHARES, halves
from fedreft_lib.data.glue_sources import GLUE

# ReFT (arXiv 2404.03592), the table of LoReFT with RoBERTa-large on GLUE: positions, lr, dropout, warm-up, epochs.
REFT = {
    "mnli": ("f1", 6e-4, 0.05, 0.0, 20),
    "sst2": ("f3", 6e-4, 0.05, 0.10, 20),
    "mrpc": ("f3", 3e-4, 0.20, 0.06, 30),
    "cola": ("f3", 1e-4, 0.20, 0.20, 30),
    "qnli": ("f11", 9e-4, 0.05, 0.10, 20),
    "qqp": ("f11", 6e-4, 0.05, 0.06, 20),
    "rte": ("f3", 6e-4, 0.05, 0.0, 30),
    "stsb": ("f3", 8e-4, 0.05, 0.20, 30),
}


def parameters(profile):
    """What the notebook runs with: its own values, and those of the profile in their place."""
    (job,) = plan(profile, ["5"])
    return {**parameters_of(job.notebook), **job.parameters}


def of_each_task(profile):
    """The RunConfig that the notebook makes of each task that is run, or has hyperparameters of its own."""
    given = parameters(profile)
    base = {name: value for name, value in given.items() if name in RunConfig.model_fields}
    tasks = dict.fromkeys([*given["glue_tasks"], *given["per_task"]])
    return {task: RunConfig(**{**base, "tasks": [task], **given["per_task"].get(task, {})}) for task in tasks}


@pytest.mark.parametrize("profile", profiles())
def test_every_task_of_every_profile_is_a_valid_run_with_the_papers_three_clients_or_one_more(profile):
    for config in of_each_task(profile).values():
        assert config.clients == (3 if profile in ("paper", "smoke") else 4) and config.setup == "iid"


def test_the_papers_settings_are_those_of_reft_for_roberta_large():
    configs = of_each_task("paper")
    found = {task: (c.positions, c.lr, c.dropout, c.warmup, c.rounds * c.local_epochs) for task, c in configs.items()}
    assert found == REFT
    for config in configs.values():
        assert (config.backbone, config.source, config.local_steps) == ("FacebookAI/roberta-large", "hub", None)
        assert (config.rank, config.layers, config.batch_size, config.max_length) == (1, "all", 32, 256)
        assert config.weight_decay == 0.0 and config.schedule == "linear"
    assert parameters("paper")["seeds"] == [42, 43, 44, 45, 46]
    assert parameters("paper")["glue_tasks"] == ["mnli", "sst2", "qnli", "qqp", "rte"]  # Table 5


def test_clients_find_as_many_texts_as_they_ask_for():
    for task, config in of_each_task("paper").items():
        dev, test = map(len, halves([None] * GLUE[task].validation_size, seed=42))
        test += 9_832 if task == "mnli" else 0  # its mismatched validation set
        for asked, there in (
            (config.train_size, GLUE[task].train_size), (config.held_out_size, dev), (config.test_size, test),
        ):  # fmt: skip
            assert 0.98 * there <= 3 * asked <= there, task  # all but what repeats may take
    for config in of_each_task("full").values():
        there = [int(share * GLUE[config.tasks[0]].validation_size) for share in PACKAGED_SHARES[:2]]
        there.append(GLUE[config.tasks[0]].validation_size - sum(there))
        asked = [4 * size for size in (config.train_size, config.held_out_size, config.test_size)]
        assert all(want <= have for want, have in zip(asked, there, strict=True))
        assert asked[2] > 0.9 * there[2]  # small clients, large tests
