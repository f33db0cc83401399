"""What the notebooks show: figures, tables, widgets, and the ledger of published numbers.

    figures, ablation_figures            pictures of runs
    tables, comparisons, paper_tables    numbers of runs, beside each other and beside the paper's
    widgets                              what has sliders
    ledger, audit                        published figures with their sources, and whether they agree with each other
    method_facts                         what each method trains, sends and keeps, found out from its code
    robustness, breakdown                hostile clients
    judge                                files for an external judge

Nothing here changes a result.
"""
