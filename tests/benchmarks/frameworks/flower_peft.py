"""Flower's recipe for language models: python -m tests.benchmarks.frameworks.flower_peft FOLDER.

A client makes its model anew for each message, puts the server's adapter in, trains it with transformers' Trainer and
sends it back; the server takes the mean. One client at a time has all threads, as in Flower's own example.
"""

import logging
import sys
import tempfile
import time

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import Trainer, TrainingArguments

from tests.benchmarks.frameworks import task as tasks
from tests.benchmarks.frameworks.task import Task

BEGAN = time.time()
client_app, server_app = ClientApp(), ServerApp()


def adapted(task: Task) -> PeftModel:
    config = LoraConfig(r=task.rank, lora_alpha=task.alpha, target_modules=task.targets, task_type="CAUSAL_LM")
    return get_peft_model(task.model("dtype"), config)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    task = tasks.read(message.content["config"]["folder"])
    model = adapted(task)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    examples = task.examples(context.node_config["partition-id"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = tasks.trainer_arguments(task, folder, seed=message.content["config"]["server-round"])
        trainer = Trainer(
            model,
            TrainingArguments(**arguments),
            data_collator=lambda rows: tasks.padded(task, rows),
            train_dataset=examples,
        )
        loss = trainer.train().training_loss
    metrics = {"num-examples": len(examples), "loss": loss, "steps": trainer.state.global_step}
    content = {"arrays": ArrayRecord(get_peft_model_state_dict(model)), "metrics": MetricRecord(metrics)}
    return Message(content=RecordDict(content), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    task = tasks.read(sys.argv[1])
    start = ArrayRecord(get_peft_model_state_dict(adapted(task)))
    result = FedAvg(fraction_evaluate=0.0, min_available_nodes=task.clients).start(
        grid, start, num_rounds=task.rounds, train_config=ConfigRecord({"folder": task.folder})
    )
    rounds = result.train_metrics_clientapp  # means over the clients
    steps = sum(each["steps"] for each in rounds.values()) * task.clients
    tasks.said(BEGAN, [each["loss"] for each in rounds.values()], round(steps), 2 * start.count_bytes())


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.ERROR)
    task = tasks.read(sys.argv[1])
    resources = {
        "init_args": {"num_cpus": task.threads, "include_dashboard": False, "log_to_driver": False},
        "client_resources": {"num_cpus": task.threads, "num_gpus": 0.0},
    }
    run_simulation(server_app, client_app, task.clients, backend_config=resources)
