"""A loop around pyreft's ReftTrainer: python -m tests.benchmarks.frameworks.pyreft_loop FOLDER.

One model serves all clients, one after another: the mean of the last round goes into its interventions, pyreft's
trainer trains them, and what they have become is put by for the next mean.
"""

import sys
import tempfile
import time

import pyreft
import torch
import transformers
from transformers import TrainingArguments

from tests.benchmarks.frameworks import task as tasks
from tests.benchmarks.frameworks.task import Task

BEGAN = time.time()
States = dict[str, dict[str, torch.Tensor]]  # by intervention


class Trainer(pyreft.ReftTrainer):
    def compute_loss(self, intervenable, inputs, return_outputs=False, **how):
        """pyreft's; transformers after 4.45 gives one argument more."""
        return super().compute_loss(intervenable, inputs, return_outputs)


def steered(task: Task) -> pyreft.ReftModel:
    """LoReFT at every layer, one intervention for the prefix and one for the suffix."""
    model = task.model("torch_dtype")
    width, layers = model.config.hidden_size, range(model.config.num_hidden_layers)
    sites = [
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": task.rank,
            "intervention": pyreft.LoreftIntervention(embed_dim=width, low_rank_dimension=task.rank, dtype=model.dtype),
        }
        for layer in [*layers, *layers]
    ]
    return pyreft.get_reft_model(model, pyreft.ReftConfig(representations=sites))


def examples(task: Task, client: int, sites: int) -> list[dict]:
    """A client's, with pyreft's places; what a short prompt lacks of them goes to a padding token before the text."""
    found = []
    for row in task.examples(client):
        places = pyreft.get_intervention_locations(
            last_position=row["prompt"], positions=task.positions, num_interventions=sites, pad_mode="first"
        )
        found.append(
            {
                "input_ids": [task.pad, *row["input_ids"]],
                "labels": [tasks.IGNORED, *row["labels"]],
                "intervention_locations": [[place + 1 for place in each] for each in places],
            }
        )
    return found


def collated(task: Task, rows: list[dict]) -> dict[str, torch.Tensor]:
    batch = tasks.padded(task, rows)
    batch["attention_mask"][:, 0] = 0
    return {**batch, "intervention_locations": torch.tensor([row["intervention_locations"] for row in rows])}


def trained(task: Task, model: pyreft.ReftModel, rows: list[dict], t: int) -> tuple[float, int]:
    """The mean loss, and the steps."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(**tasks.trainer_arguments(task, folder, seed=t))
        trainer = Trainer(
            model=model, args=arguments, data_collator=lambda batch: collated(task, batch), train_dataset=rows
        )
        return trainer.train().training_loss, trainer.state.global_step


def states_of(model: pyreft.ReftModel) -> States:
    return {
        name: {key: tensor.clone() for key, tensor in module.state_dict().items()}
        for name, module in model.interventions.items()
    }


def mean(all_states: list[States]) -> States:
    return {
        name: {key: torch.stack([each[name][key] for each in all_states]).mean(0) for key in state}
        for name, state in all_states[0].items()
    }


@torch.no_grad()
def load(model: pyreft.ReftModel, states: States) -> None:
    """A mean of bases is none: R becomes the nearest one. pyreft's own way to load a state refuses others."""
    for name, module in model.interventions.items():
        module.learned_source.load_state_dict(states[name], strict=False)
        left, _, right = torch.linalg.svd(states[name]["rotate_layer"], full_matrices=False)
        module.rotate_layer.weight = left @ right


def main() -> None:
    transformers.logging.set_verbosity_error()
    task = tasks.read(sys.argv[1])
    model = steered(task)
    rows = [examples(task, k, len(model.interventions)) for k in range(task.clients)]
    shared, losses, steps = states_of(model), [], 0
    sent = 2 * sum(tensor.nbytes for state in shared.values() for tensor in state.values())
    for t in range(1, task.rounds + 1):
        learned, found = [], []
        for own in rows:
            load(model, shared)
            loss, done = trained(task, model, own, t)
            learned.append(states_of(model))
            found.append(loss)
            steps += done
        shared = mean(learned)
        losses.append(sum(found) / len(found))
    tasks.said(BEGAN, losses, steps, sent)


if __name__ == "__main__":
    main()
