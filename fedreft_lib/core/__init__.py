"""The paper in plain torch: what an intervention is, how one client trains it, how clients are mixed.

Read in this order, about a thousand lines:

    state             named tensors <-> a row of the federation matrix X (N, P)
    interventions     LoReFT and its relatives: Phi(h) = h + R^T (W h + b - R h)
    notation, sites   at which layers and positions they act, and the hooks that put them there
    rotation          R kept orthonormal in training, and brought back after averaging
    training          a client's optimiser steps on a loss that it is given
    aggregation       All-But-Me and FedAvg as matrices; geometric_median and robust hold the rules
    mixing            X' = (1 - lam) X + lam A X, and how lam is set

There is no config, no language model and no data here, and nothing that is only there for speed: numbers and functions
come in as arguments. Who gives them is `federation`.
"""
