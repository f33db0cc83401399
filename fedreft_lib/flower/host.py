"""A host of a deployment: the client's process, which keeps the model, and Flower's SuperNode, which it starts.

    python -m fedreft_lib.flower.host --client 1 --key KEY --superlink HOST:8000 --root-certificates CA --home FOLDER

It runs until it is stopped or the SuperNode ends. The first message that needs the backbone loads it, and it stays in
memory. The process reads only its own client's questions. Both are read again if their files change.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Listener
from pathlib import Path

from flwr.app import RecordDict
from tqdm.auto import tqdm

from ..config import RunConfig
from ..errors import ConfigError
from ..federation.assembly import Federation, assemble
from ..model.shared import loaded
from . import free_port, program, relay
from .client_app import answer

PATIENCE = 15.0  # seconds for the SuperNode to end


class Host:
    """Client k (from 0). home: the folder for its states. data: its own files, for a run with source="local"."""

    def __init__(self, k: int, home: Path, data: Path | None):
        self.k, self.home, self.data = k, home, data

    def opened(self, config: RunConfig, outputs: int) -> Federation:
        if config.source == "local":  # the host, not the run, decides where its files are
            if self.data is None:
                raise ConfigError("the run asks for the host's own files, and the node was started without --data")
            config = config.but(data_dir=str(self.data))
        return assemble(config, self.k, outputs)

    def answer(self, kind: str, content: RecordDict) -> RecordDict:
        begun = time.monotonic()
        try:
            return answer(kind, content, self.k, self.home, self.opened)
        finally:
            tqdm.write(f"{kind}: {time.monotonic() - begun:.2f} s; backbones loaded so far: {len(loaded)}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fedreft_lib.flower.host", description=__doc__.split("\n")[0])
    parser.add_argument("--client", type=int, required=True, help="which client of the federation this is, from 1")
    parser.add_argument("--home", type=Path, required=True, help="the folder for the client's states")
    parser.add_argument("--data", type=Path, help='of a run with source="local": the folder of its files')
    parser.add_argument("--superlink", required=True, help="HOST:PORT of the server")
    parser.add_argument("--root-certificates", type=Path, required=True, help="whose servers are trusted")
    parser.add_argument("--key", type=Path, required=True, help="the private key that the server knows this node by")
    given = parser.parse_args()
    host = Host(given.client - 1, given.home.absolute(), given.data and given.data.absolute())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Listener() as listener:
        supernode = subprocess.Popen(
            [
                program("flower-supernode"), "--superlink", given.superlink,
                "--root-certificates", given.root_certificates, "--auth-supernode-private-key", given.key,
                "--node-config", f'link="{listener.address}"', "--port", str(free_port()),
            ],
        )  # fmt: skip
        threading.Thread(target=_end_with, args=(supernode,), daemon=True).start()
        try:
            while supernode.poll() is None:
                relay.answer_one(listener, host.answer)
        except (KeyboardInterrupt, SystemExit):
            pass
        finally:
            supernode.terminate()
            try:
                code = supernode.wait(PATIENCE)
            except subprocess.TimeoutExpired:  # it still looks for a server that has ended
                supernode.kill()
                code = supernode.wait()
    sys.exit(code)


def _end_with(supernode: subprocess.Popen) -> None:
    """End this process after the SuperNode: no more messages will come."""
    supernode.wait()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
