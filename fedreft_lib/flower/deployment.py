"""The ServerApp of a deployment."""

import json
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..config import RunConfig
from .secure_sums import serve_sums
from .server_app import serve


def server_app() -> ServerApp:
    """The ServerApp that runs what its run config asks for.

    config: a JSON file of RunConfig's fields. folder: of the run. patience: seconds to wait for a node. sums: the
    server receives only sums, which it saves in the folder with the history.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        given = context.run_config
        config = RunConfig(**json.loads(Path(str(given["config"])).read_text(encoding="utf-8")))
        folder, how = Path(str(given["folder"])), {"patience": float(given["patience"])}
        if given["sums"]:
            serve_sums(grid, context, config, **how).save(folder)
        else:
            serve(grid, config, folder, **how)

    return app
