"""A run's folder.

    store          writes it, round by round, so that a run that is stopped goes on
    results        reads it: one run, many runs, results.csv; read this first
    checkpoints    a whole round in one file that notices its own damage
    client_states  X (N, P) for more clients than memory holds
    listening      who listened to whom

No model is loaded here, and nothing is trained: what a run's folder depends on is handed in.
"""
