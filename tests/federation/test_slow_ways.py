"""Whole runs on a model that is read in slower ways: the results of one client after another, each text alone."""

from dataclasses import replace

import pytest
import torch

from fedreft_lib import run
from fedreft_lib.federation.assembly import _build, assemble
from fedreft_lib.federation.evaluation import evaluate_all
from fedreft_lib.federation.local_clients import start
from fedreft_lib.federation.rounds import federated_round
from fedreft_lib.model.ways import Ways
from tests.helpers.families import DECODERS, backbone_of
from tests.helpers.federations import small


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A folder with a tiny hybrid decoder."""
    if "lfm2" not in DECODERS:
        pytest.skip("this transformers has no lfm2")
    folder = tmp_path_factory.mktemp("lfm2")
    backbone = backbone_of(
        "lfm2", "causal", vocab_size=258, pad_token_id=0, eos_token_id=1, max_position_embeddings=2048
    )
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "more",
    [
        {"engine": "cohort", "mixing": "adaptive"},
        {"intervention": "lora", "targets": ("q_proj",), "layers": (1, 3), "method": "feddpa", "engine": "cohort"},
        {"method": "feddpa", "scoring": "generation", "prompt_format": "llm_adapters", "max_new_tokens": 3},
    ],
    ids=["cohort", "feddpa over lora", "generation"],
)
def test_a_run_on_a_model_that_is_read_in_slower_ways(slow, capsys, more):
    """As one client after another, each text alone, has it; and it says so."""
    config = small(backbone=slow, dtype="float32", rounds=1, local_steps=2, test_size=4, **more)
    _build.cache_clear()
    done = run(config, progress=False)
    assert (
        "is read in a slower way, which is right: each option is read with a prompt of its own"
        in capsys.readouterr().out
    )
    assert done.manifest["reading"].startswith("each option is read with a prompt of its own")
    federation = assemble(config)
    alone = replace(federation, model=federation.model.read_by(Ways("alone", cached=False)), memo={})
    one_by_one = config.but(engine="one_by_one")
    X, _ = federated_round(alone, one_by_one, start(alone, one_by_one), 1)
    torch.testing.assert_close(done.states, X, atol=2e-4, rtol=1e-3)
    scores = {
        row["client"]: row["value"] for row in evaluate_all(alone, one_by_one, X, 1) if row["metric"] == "accuracy"
    }
    assert dict(done.accuracy()) == scores
