"""What the notebooks show: figures, tables, widgets, and the ledger of published numbers.

    figures, ablation_figures            figures of runs
    canvas, looks, sampling              what they have in common: paper, one colour a method, what one seed can tell
    tables, comparisons, paper_tables    numbers of runs, compared with each other and with the paper's
    statistics                           intervals, adjustment and power of every comparison
    study, findings                      when listening to the others helps: the map of notebook 06
    widgets                              interactive parts with sliders
    style_book                           the flip book of notebook 04: texts by recognised style, as λ grows
    live, live_html, remix               λ live on the real model: the widget, what it shows, what it computes
    texts                                what a model writes for a prompt of one's own, and for many states at once
    outlier                              one client's update, stretched: what an honest client becomes by each rule
    exercises                            checks of a student's answers
    ledger, audit                        published numbers with their sources, and whether they are consistent
    method_facts                         what each method trains, sends and keeps, derived from its code
    robustness, breakdown                hostile clients
    arms, controls, forest               notebook 11: runs that differ in one thing, their controls, a figure of them
    measures                             notebook 11: what is measured beside accuracy
    head_alone                           FedVRA where its limit is known: heads alone, on frozen features
    linear_theory                        why an average is a good start, in linear models
    judge                                files for an external judge

Nothing here changes a result.
"""
