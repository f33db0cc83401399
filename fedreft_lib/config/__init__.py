"""Every parameter of a run, and the files and notebooks that set them.

    fields               each parameter: group, default, range, symbol, reason; read this first
    checks               what parameters have to be together
    run_config           RunConfig: all of that for one run
    notebook_parameters  what notebooks have beside RunConfig's fields
    parameter_files      YAML, read strictly
    listing              all parameters as a text

Nothing here loads torch or a model: a wrong parameter is refused within a second.
"""

from .run_config import RunConfig

__all__ = ["RunConfig"]
