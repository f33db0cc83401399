"""Notebooks executed in a batch, and the report.

command_line   `python -m fedreft_lib ...`; read this first
reproduce      execute a profile's notebooks with papermill
jobs           which ones, with which parameters, checked before anything runs
unchanged      which need not be executed again
exclusive      one batch at a time
progress       one line about the notebook that runs
report         one page of all of them
"""
