"""What the notebooks show: figures, tables, widgets, and the ledger of published numbers.

    figures, ablation_figures            figures of runs
    tables, comparisons, paper_tables    numbers of runs, compared with each other and with the paper's
    statistics                           intervals, adjustment and power of every comparison
    study                                when listening to the others helps: the map of notebook 06
    widgets                              interactive parts with sliders
    style_book                           the flip book of notebook 04: texts by recognised style, as λ grows
    live, live_html, remix               λ live on the real model: the widget, what it shows, what it computes
    ledger, audit                        published numbers with their sources, and whether they are consistent
    method_facts                         what each method trains, sends and keeps, derived from its code
    robustness, breakdown                hostile clients
    judge                                files for an external judge

Nothing here changes a result.
"""
