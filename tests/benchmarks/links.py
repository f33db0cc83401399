"""Bytes and seconds of a round over links of a given bandwidth; writes outputs/bench/links.csv.

    python -m tests.benchmarks.links [MBITS ...]        as root, on Linux; 1000, 10 and 1 megabits a second by default

Every host has a network namespace of its own (its own interfaces, its own addresses), which a cable joins to the
server's; a token bucket at each end of each cable lets through so many bits a second, either way. The deployment is
that of `loopback`, with TLS and keys, on an address that only the cables reach.

A row is a method over a link: the bytes that the history counts for a client in a round, those that its cable carried
from the end of one round to the end of the next (with TLS, HTTP, looking for messages, and signs of life), and the
seconds between. All hosts share this machine's cores; the process that Flower starts for every message and its look for
messages every three seconds are in the seconds, so the first rows, over cables that nothing slows, say what these cost.
Flower does not carry an array that the server already holds, so less may be carried than is counted.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from fedreft_lib import RunConfig, load_run
from fedreft_lib.flower import local_deployment
from tests.benchmarks.deployment import MOST, watched

METHODS = ("fedreft", "fedit", "ffa", "fedsa", "flora", "fedsb")
CLIENTS, ROUNDS = 3, 3  # of which the second is measured: the first is remembered, the last has the tests
SERVER, ADDRESS = "fedreft-server", "10.77.0.1"
OUTPUTS = Path(__file__).parents[2] / "outputs" / "bench"


def config_of(method: str) -> RunConfig:
    adapter = {} if method == "fedreft" else {"intervention": "lora"}
    return RunConfig(
        method=method, dtype="bfloat16", tasks=("arc_easy", "piqa", "siqa"), clients=CLIENTS, rounds=ROUNDS,
        train_size=8, held_out_size=1, test_size=1, local_steps=1, batch_size=1, eval_every=0, **adapter,
    )  # fmt: skip


def host(client: int) -> str:
    return f"fedreft-{client}"


def build() -> None:
    """The server's namespace with a bridge, and a cable from each host's to it."""
    _ip("netns", "add", SERVER)
    _ip("-n", SERVER, "link", "set", "lo", "up")
    _ip("-n", SERVER, "link", "add", "bridge", "type", "bridge")
    _ip("-n", SERVER, "addr", "add", f"{ADDRESS}/24", "dev", "bridge")
    _ip("-n", SERVER, "link", "set", "bridge", "up")
    for client in range(1, CLIENTS + 1):
        _ip("netns", "add", host(client))
        _ip("-n", host(client), "link", "set", "lo", "up")
        _ip("-n", SERVER, "link", "add", f"to{client}", "type", "veth", "peer", "name", "cable", "netns", host(client))
        _ip("-n", SERVER, "link", "set", f"to{client}", "master", "bridge", "up")
        _ip("-n", host(client), "addr", "add", f"10.77.0.{client + 1}/24", "dev", "cable")
        _ip("-n", host(client), "link", "set", "cable", "up")


def tear_down() -> None:
    for name in (SERVER, *map(host, range(1, CLIENTS + 1))):
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def shape(mbits: float) -> None:
    """Both ends of every cable."""
    ends = [(SERVER, f"to{client}") for client in range(1, CLIENTS + 1)]
    ends += [(host(client), "cable") for client in range(1, CLIENTS + 1)]
    for namespace, device in ends:
        bucket = ("rate", f"{mbits}mbit", "burst", "32kb", "latency", "400ms")
        _run("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf", *bucket)


def carried() -> tuple[float, int, int]:
    """Now, and the bytes that the first host's cable has carried up and down."""
    text = _run("ip", "netns", "exec", host(1), "cat", "/proc/net/dev")
    numbers = next(line.split(":")[1].split() for line in text.splitlines() if line.strip().startswith("cable"))
    return time.perf_counter(), int(numbers[8]), int(numbers[0])


def measured(here: local_deployment.Loopback, folder: Path, method: str, mbits: float) -> dict:
    shape(mbits)
    with watched(folder, carried) as ends:
        here.wait(here.submit(config_of(method), folder), MOST)
    seconds, up, down = (after - before for after, before in zip(ends[2], ends[1], strict=True))
    history = load_run(folder).history
    of_round = history[(history["round"] == 2) & history["client"].str.startswith("client1")]
    counted = {name: int(of_round[f"{name}link_bytes"].sum()) for name in ("up", "down")}
    return {
        "method": method, "mbit_per_s": mbits, "seconds": round(seconds, 2),
        "counted_up": counted["up"], "counted_down": counted["down"], "carried_up": up, "carried_down": down,
        "computed_seconds": round(8 * sum(counted.values()) / (mbits * 1e6), 2),
    }  # fmt: skip


def inside(links: list[float]) -> None:
    """In the server's namespace: one deployment, all methods over all links."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        here = local_deployment.Loopback(Path(scratch) / "flower", ADDRESS, threads=1)
        try:
            here.start_superlink()
            for client in range(1, CLIENTS + 1):
                here.start_node(client, here.register(client), within=("ip", "netns", "exec", host(client)))
            for mbits in links:
                for method in METHODS:
                    rows.append(measured(here, Path(scratch) / f"{method}-{mbits:g}", method, mbits))
                    print(rows[-1], flush=True)
                    OUTPUTS.mkdir(parents=True, exist_ok=True)
                    pd.DataFrame(rows).to_csv(OUTPUTS / "links.csv", index=False)
        finally:
            here.stop()


def main() -> None:
    links = [float(each) for each in sys.argv[1:]] or [1000.0, 10.0, 1.0]
    if os.environ.get("FEDREFT_LINKS"):
        return inside(links)
    if sys.platform != "linux" or os.geteuid() != 0:
        sys.exit("links: network namespaces need Linux and root")
    tear_down()  # what an earlier one left
    try:
        build()
        command = ["ip", "netns", "exec", SERVER, sys.executable, "-m", "tests.benchmarks.links", *map(str, links)]
        subprocess.run(command, env={**os.environ, "FEDREFT_LINKS": "inside"}, check=True)
    except subprocess.CalledProcessError as error:
        sys.exit(f"links: {' '.join(map(str, error.cmd))}: {(error.stderr or '').strip()}")
    finally:
        tear_down()


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
