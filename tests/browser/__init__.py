"""What a reader sees and does, in a real browser: widgets, the report page, JupyterLab. `make test-browser` runs it."""
