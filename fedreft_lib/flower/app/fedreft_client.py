"""The ClientApp: it passes messages to its host's `fedreft_lib.flower.host`, and loads neither torch nor a model."""

from pathlib import Path

from fedreft_lib.flower.relay import Answers, client_app


def in_this_process(home: Path) -> Answers:
    from fedreft_lib.flower import client_app as here  # loads torch; needed only without a host

    return here.in_this_process(home)


app = client_app(in_this_process)
