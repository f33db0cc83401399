"""A whole Flower deployment on this machine, with TLS and a key for every node: started, used, and stopped.

    python -m fedreft_lib.flower.local_deployment CONFIG.json FOLDER

The processes, and the order in which they start, are those of a deployment on several hosts:

    flower-superlink           one, on the server's host; it never receives clients' data
    fedreft_lib.flower.host    one for each client, on the host that has its data; it starts a flower-supernode
    flwr run                   on the host that starts the run: it sends the app to the superlink
"""

import argparse
import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..config import RunConfig
from ..errors import FedReFTError
from ..runs.results import Run, load_run
from . import certificates, free_port, program

APP = Path(__file__).parent / "app"
EVERY = 10.0  # seconds between checks of a run's status; each check starts a python
ANSWERS_WITHIN = 600  # seconds; a flwr command packs an app and starts a python, which takes minutes on a busy machine
STARTS = 3  # tries of a superlink
TAKEN = "address already in use"  # uvicorn's, of a port
SITE = "loopback"  # the name of the superlink in flwr's own configuration


class Loopback:
    """A superlink at an address of this machine, and its nodes. `federation` starts and stops one.

    threads: torch's, of each process; by default the number that it would use on its own machine.
    """

    def __init__(self, folder: Path, address: str = "127.0.0.1", threads: int | None = None):
        self.folder, self.address, self.threads = folder.absolute(), address, threads
        self.processes: dict[str, subprocess.Popen] = {}
        self.ca, self.certificate, self.key = certificates.certificates(self.folder / "secrets", address)
        self._take_port()

    def _take_port(self) -> None:
        """Chooses a free port for the superlink, and tells flwr's commands."""
        self.port = free_port()
        home = self.folder / "flwr" / "cli"
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{SITE}"\n\n[superlink.{SITE}]\n'
            f'address = "{self.address}:{self.port}"\nroot-certificates = "{self.ca}"\n',
            encoding="utf-8",
        )

    def start_superlink(self, starts: int = STARTS) -> None:
        """Its database is a file, so a superlink that starts again knows earlier nodes and runs.

        It binds its port a second after it was found free. Where another program has taken it by then, and no node
        knows it yet, it takes another one.
        """
        self.start(
            "superlink", program("flower-superlink"), "--host", self.address, "--port", self.port,
            "--ssl-ca-certfile", self.ca, "--ssl-certfile", self.certificate, "--ssl-keyfile", self.key,
            "--enable-supernode-auth", "--database", self.folder / "superlink.db",
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        try:
            self.await_health("superlink", f"https://{self.address}:{self.port}/health")
        except FedReFTError:
            log = (self.folder / "logs" / "superlink.log").read_text(encoding="utf-8", errors="replace")
            if starts == 1 or len(self.processes) > 1 or TAKEN not in log:
                raise
            self.kill("superlink")
            self._take_port()
            self.start_superlink(starts - 1)

    def register(self, client: int) -> Path:
        """Make a key for the client and register it with the superlink. Returns the private key's path."""
        private, public = certificates.node_key(self.folder / "secrets" / f"client{client}")
        found = self.flwr("supernode", "register", public, SITE, "--name", f"client{client}")
        if not found.get("success"):
            raise FedReFTError(f"the superlink did not register client {client}: {found}")
        return private

    def start_node(
        self,
        client: int,
        key: Path,
        *,
        data: Path | None = None,
        name: str = "",
        ca: Path | None = None,
        within: Sequence[str] = (),
    ) -> None:
        """Start the node of a client (from 1). data: the folder of its own files. name, ca: for a node that must be
        refused. within: a command that starts it elsewhere, for instance in a network namespace."""
        self.start(
            name or f"client{client}", *within, sys.executable, "-m", "fedreft_lib.flower.host", "--client", client,
            "--home", self.folder / "nodes", "--superlink", f"{self.address}:{self.port}",
            "--root-certificates", ca or self.ca, "--key", key, *(["--data", data] if data else []),
        )  # fmt: skip

    def start_again(self, client: int, seconds: float = 180.0) -> None:
        """Restart a client's node that was killed. The superlink refuses it until it notices that, a minute later."""
        name, deadline = f"client{client}", time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.start_node(client, self.folder / "secrets" / name)
            try:
                self.processes[name].wait(10)
            except subprocess.TimeoutExpired:
                return  # it was admitted
            self.kill(name)
        raise FedReFTError(f"client {client} was not taken back: {self.folder / 'logs' / name}.log says why")

    def submit(
        self, config: RunConfig, run_folder: Path, patience: float = 600.0, *, sums: bool = False, app: Path = APP
    ) -> str:
        """Start a run and return its number. sums: the server receives only sums."""
        path = self.folder / "config.json"
        path.write_text(config.model_dump_json(indent=1), encoding="utf-8")
        given = f'config="{path}" folder="{run_folder.absolute()}" patience={float(patience)} sums={str(sums).lower()}'
        found = self.flwr("run", app, SITE, "-c", given)
        if "run-id" not in found:
            raise FedReFTError(f"the superlink did not take the run: {found}")
        return str(found["run-id"])

    def status(self, run_id: str) -> tuple[str, str]:
        """ "running", "finished:completed", ... and the details."""
        (found,) = self.flwr("ls", SITE, "--run-id", run_id)["runs"]
        return found["status"], found.get("status-details", "")

    def wait(self, run_id: str, seconds: float, look: Callable[[], str] = lambda: "") -> None:
        """Wait for a run. Prints its status and the text of `look()`, whenever either changes.

        Raises FedReFTError where the run fails or takes longer than `seconds`.
        """
        deadline, asked, seen, printed = time.monotonic() + seconds, float("-inf"), None, ""
        while time.monotonic() < deadline:
            time.sleep(1)
            now = look()
            if now == seen and time.monotonic() < asked + EVERY:
                continue
            status, details = self.status(run_id)
            asked, seen = time.monotonic(), now
            if (now := " ".join(filter(None, [status, now]))) != printed:
                print(printed := now, flush=True)
            if status == "finished:completed":
                return
            if status.startswith("finished"):
                raise FedReFTError(f"the run ended as {status} ({details}); {self.folder / 'logs'} says more")
        raise FedReFTError(f"the run has not ended after {seconds:g} seconds; {self.folder / 'logs'} says more")

    def flwr(self, *arguments: object) -> dict:
        """The answer of a flwr command. Raises FedReFTError where there is none."""
        command = [program("flwr"), *map(str, arguments), "--format", "json"]
        try:
            done = subprocess.run(
                command, env=self._environment("cli"), capture_output=True, text=True, timeout=ANSWERS_WITHIN
            )
        except subprocess.TimeoutExpired:
            raise FedReFTError(f"{' '.join(command)} did not answer within {ANSWERS_WITHIN} seconds") from None
        try:
            return json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            output = " ".join((done.stdout + done.stderr).split())
            raise FedReFTError(f"{' '.join(command)} answered: {output}") from None

    def start(self, name: str, *command: object) -> None:
        """Start a process of the deployment under its own name."""
        log = self.folder / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self.processes[name] = subprocess.Popen(
                [*map(str, command)],
                env=self._environment(name), stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def kill(self, name: str, how: int = signal.SIGKILL) -> None:
        """End a process and all processes that it has started."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        """End all processes; nodes first, or they would look for the superlink."""
        for name in reversed(list(self.processes)):
            self.kill(name, signal.SIGTERM)

    def _environment(self, name: str) -> dict[str, str]:
        """Each process has its own Flower folder."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        own = {"PATH": path, "NO_PROXY": self.address, "FLWR_HOME": str(self.folder / "flwr" / name)}
        return {**os.environ, **own, **({"OMP_NUM_THREADS": str(self.threads)} if self.threads else {})}

    def await_health(self, name: str, url: str, seconds: float = 60.0) -> None:
        """Wait until the process of that name answers at `url`. Raises FedReFTError where it does not."""
        trusted = ssl.create_default_context(cafile=str(self.ca))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted)
        )
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.processes[name].poll() is not None:
                break
            try:
                with opener.open(url, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise FedReFTError(f"the {name} did not start: {self.folder / 'logs' / name}.log says why")


@contextlib.contextmanager
def federation(folder: Path, clients: int, data: Path | None = None, threads: int | None = None) -> Iterator[Loopback]:
    """A superlink and a node for each client, with its own files in `data`. At the end all processes have ended."""
    here = Loopback(folder, threads=threads)
    try:
        here.start_superlink()
        for client in range(1, clients + 1):
            here.start_node(client, here.register(client), data=data)
        yield here
    finally:
        here.stop()


def run(config: RunConfig, folder: Path, seconds: float = 3600.0) -> Run:
    """`federation.rounds.run` as a deployment on this machine, with the same bits; prints its progress."""

    def look() -> str:
        return f"round {rounds_done(folder)} of {config.rounds} is done"

    print(f"a superlink and {config.clients} hosts here, each with a model of its own", flush=True)
    data = config.data_dir and Path(config.data_dir)
    with federation(folder / "flower", config.clients, data) as here:
        here.wait(here.submit(config, folder), seconds, look)
    return load_run(folder)


def rounds_done(folder: Path) -> int:
    """The complete rounds of the run in a folder; 0 where there is no run yet."""
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["round"]
    except (OSError, ValueError):
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fedreft_lib.flower.local_deployment", description=__doc__.split("\n")[0]
    )
    parser.add_argument("config", type=Path, help="a JSON file of RunConfig's fields")
    parser.add_argument("folder", type=Path, help="of the run; what Flower needs goes below it")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("loopback: stopped"))  # or the processes would stay
    try:
        config = RunConfig(**json.loads(given.config.read_text(encoding="utf-8")))
        done = run(config, given.folder)
    except (FedReFTError, OSError, ValueError) as error:
        sys.exit(f"loopback: {error}")
    print(done.accuracy().round(1).to_string())


if __name__ == "__main__":
    main()
