"""Notebooks executed in a batch, and the report.

command_line   `python -m fedreft_lib ...`; read this first
reproduce      executes a profile's notebooks with papermill
jobs           which notebooks, with which parameters, checked before anything runs
unchanged      which notebooks need no new execution
exclusive      one batch at a time
progress       one line about the notebook that runs
report         all notebooks on one page
lab            JupyterLab for a reader: `make lab`
working_copies the notebooks that it opens
found_runs     the runs of a batch, for these
"""
