"""Notebooks executed in a batch, and the report.

command_line   `python -m fedreft_lib ...`; read this first
reproduce      executes a profile's notebooks with papermill
jobs           which notebooks, with which parameters, checked before anything runs
unchanged      which notebooks need no new execution
exclusive      one batch at a time
progress       one line about the notebook that runs
record         what an executed notebook keeps
report, play   all notebooks on one page; what there is to play with on a small one
page           what both pages have in common; markup and page_tables make outputs fit for it
lab            JupyterLab for a reader: `make lab`
working_copies the notebooks that it opens
found_runs     the runs of a batch, for these
"""
