"""The ClientApp: messages go on to the host's own `fedreft_lib.flower.host`; neither torch nor a model is loaded."""

from pathlib import Path

from fedreft_lib.flower.relay import Answers, client_app


def in_this_process(home: Path) -> Answers:
    from fedreft_lib.flower import client_app as here  # loads torch, where there is no host that has it

    return here.in_this_process(home)


app = client_app(in_this_process)
