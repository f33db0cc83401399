"""A frozen language model, steered by a client's state.

    backbone, tiny, weights, gguf, identity     load a model by name; which files the name means
    shared                                      one backbone a process
    architectures                               sizes, parameters and memory, before anything is loaded
    adapters, linears, heads                    the parts of a state, and where they act
    steered                                     the model with a state: log-probabilities, generation; read this first
    tokens, reader, encoding                    items as the model reads them, one by one and in batches
    ways, agreement, known_ways                 the ways to read batches, the trials that find a correct one, and what
                                                earlier processes found
    local_training                              a state trained on one client's data
    place_inputs                                what is read where a state acts
    scoring                                     the scores of a state
    pyreft_format                               states to and from pyreft's files

`fast` holds code for speed only. This room does not know the federation.
"""
