"""The paper in plain torch: what an intervention is, how one client trains it, how clients are mixed.

Read in this order, about 1,200 lines:

    state             named tensors <-> a row of the federation matrix X (N, P)
    interventions     LoReFT and its relatives: Phi(h) = h + R^T (W h + b - R h)
    notation, sites   the layers and positions where they act, and the hooks that apply them
    rotation          R kept orthonormal in training, and orthonormal again after averaging
    training          a client's optimiser steps on a given loss
    aggregation       All-But-Me and FedAvg as matrices; geometric_median and robust hold the rules
    mixing            X' = (1 - lam) X + lam A X, and how lam is set

This room has no config, no language model, no data and no code for speed only. Numbers and functions come in as
arguments; `federation` passes them.
"""
