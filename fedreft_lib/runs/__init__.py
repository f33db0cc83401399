"""A run's folder.

    store          writes it after each round, so a stopped run can continue
    results        reads it: one run, many runs, results.csv; read this first
    checkpoints    a complete round in one file, with a hash that reveals damage
    history        the rows of a run's scores, as text and as a table
    client_states  X (N, P) for more clients than memory holds
    round_mixing   the mixing matrix of each round
    item_scores    the scores of single items, where a run keeps them

This room loads no model and trains nothing. What a run's folder depends on comes in as arguments.
"""
