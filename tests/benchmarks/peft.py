"""LoRA by huggingface's peft and Trainer, against our LoRA and our LoReFT: the same texts, as many steps.

Trainer takes a while to start. So both sides are timed from the end of their first step to the end of their last, and
that is divided by the number of steps between: what is compared is a step in the middle of a training.
"""

import copy
import tempfile
import warnings
from collections.abc import Iterator

import torch
import torch.distributed.tensor  # noqa: F401 (peft takes it for granted, and older transformers do not import it)
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from fedreft_lib.core.state import State
from fedreft_lib.federation.training import train_client as train
from fedreft_lib.methods.lora import LoRA
from fedreft_lib.model.adapters import InLinears
from fedreft_lib.model.encoding import AnswerSet
from fedreft_lib.model.steered import SteeredModel
from tests.benchmarks import step
from tests.benchmarks.contest import Contest, Marks, Rival
from tests.benchmarks.sizes import Size

CONFIG = step.CONFIG.but(intervention="lora", warmup=0.0, weight_decay=0.0)  # Trainer's own defaults


def contests(size: Size) -> Iterator[Contest]:
    dtype, length = size.dtypes[0], size.lengths[0]
    loreft = step.loreft(size, dtype)
    backbone, layers = loreft.backbone, tuple(range(loreft.backbone.n_layers))
    kind = LoRA(CONFIG.lora_alpha / CONFIG.rank)
    lora = SteeredModel(backbone, InLinears.of(backbone, kind, layers, CONFIG.rank, CONFIG.targets))
    sequences, begin = step.examples(lora, length), lora.start("identity", 0)
    theirs = Peft(lora, sequences, size.steps)

    def check() -> str:
        theirs.load(begin)
        theirs.side()
        trained = train(lora, begin, AnswerSet(sequences, None), CONFIG, steps=size.steps, seed=0).state
        ours, other = loss(lora, sequences, trained), loss(lora, sequences, theirs.state())
        if backbone.dtype == torch.float32:
            assert abs(ours - other) < 1e-3, f"after training our loss is {ours}, peft's {other}"
        before = loss(lora, sequences, begin)
        return f"after {size.steps} steps LoRA's loss is {ours:.4f} from {before:.4f}, peft's {other:.4f}"

    def begun() -> str:
        return "another intervention than LoRA: only the time is compared"

    ours = step.our_training(lora, sequences, begin, CONFIG, size.steps)
    reft = step.our_training(loreft, sequences, loreft.start("identity", 0), steps=size.steps)
    rivals = (Rival("peft LoRA with Trainer", theirs.side),)
    yield Contest(f"training step, {dtype}, LoRA", ours, rivals, check)
    yield Contest(f"training step, {dtype}, LoReFT", reft, rivals, begun)


def loss(model: SteeredModel, sequences: list, state: State) -> float:
    with torch.no_grad():
        return -float(model.answer_logprobs(model.batch(sequences), state)[0].mean())


class Peft:
    """peft's model over a copy of the backbone, trained by transformers' Trainer."""

    def __init__(self, lora: SteeredModel, sequences: list, steps: int):
        config = LoraConfig(r=CONFIG.rank, lora_alpha=CONFIG.lora_alpha, target_modules=list(CONFIG.targets))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks for a property whose name is on its way out
            self.model = get_peft_model(copy.deepcopy(lora.backbone.model), config)
        self.steps = steps
        self.texts = [
            {"input_ids": list(s.ids), "labels": [-100] * s.prompt_length + list(s.ids[s.prompt_length :])}
            for s in sequences
        ]
        self.collate = DataCollatorForSeq2Seq(lora.backbone.tokenizer)

    def side(self) -> float:
        """Seconds of a step in the middle of Trainer's training, which goes on from where the model is."""
        marks = Marks()

        class Watch(TrainerCallback):
            def on_step_end(self, *args, **kwargs):
                marks()

        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                per_device_train_batch_size=CONFIG.batch_size,
                max_steps=self.steps,
                learning_rate=CONFIG.lr,
                max_grad_norm=CONFIG.clip,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            trainer = Trainer(self.model, arguments, self.collate, self.texts, callbacks=[Watch()])
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return marks.per_step

    def parameters(self) -> dict[str, list[torch.Tensor]]:
        """peft's parameters by our names, one a layer."""
        named = list(self.model.named_parameters())
        return {
            f"{target}.{part}": [p for name, p in named if f".{target}.lora_{part}." in name]
            for target in CONFIG.targets
            for part in "AB"
        }

    @torch.no_grad()
    def load(self, state: State) -> None:
        for name, parameters in self.parameters().items():
            for parameter, tensor in zip(parameters, state[name], strict=True):
                parameter.copy_(tensor)

    def state(self) -> State:
        return {name: torch.stack([p.detach().float() for p in each]) for name, each in self.parameters().items()}
