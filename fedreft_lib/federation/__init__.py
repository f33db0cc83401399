"""Rounds of a federation, and the run.

    client         the client's side: update, answer, next state; read this first
    server         the server's side: who takes part, which updates are admitted, what each client receives
    local_clients  clients on this machine, as the server uses them
    rounds         one round as a function, and a run of many rounds; together: many runs in step
    admission      which updates are refused
    participation  which clients take part in a round
    attacks        what hostile clients send
    dealing        which client has which items; for benchmark="agreement" pool reads the texts, labelling labels them
    assembly       the model and the data of all clients
    training       local training in phases; engine groups clients that train in one pass
    work           the tasks of a round, one after another; workers: side by side, in processes of their own
    evaluation     the scores of all clients

All clients are on this machine. `flower` runs the same client and the same server over Flower.
"""
