"""Rounds of a federation, and the run.

    client         what a client does: update, answer, next state; read this first
    server         what the server does: who takes part, what is admitted, what each receives
    local_clients  clients in this process, as the server meets them
    rounds         one round as a function, and a run of many
    admission      which updates are refused
    participation  who is there in a round
    attacks        what hostile clients send
    dealing        who has which items
    assembly       the model and everybody's data
    training       local training in phases; engine says who trains with whom in one pass
    evaluation     everybody's scores

All clients live in this process. Where they do not, see `flower`, which uses the same client and the same server.
"""
