"""Every parameter of a run, and the files and notebooks that set them.

    fields               each parameter: group, default, range, symbol, reason; read this first
    checks               which parameters go together
    run_config           RunConfig: the checked parameters of one run
    notebook_parameters  parameters of notebooks that are not fields of RunConfig
    parameter_files      YAML, read strictly
    listing              all parameters as a text

A check loads neither torch nor a model, so a wrong parameter is refused within a second.
"""

from .run_config import RunConfig

__all__ = ["RunConfig"]
