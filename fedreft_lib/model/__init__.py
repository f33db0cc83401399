"""A frozen language model, steered by a client's state.

    backbone, tiny, weights, gguf, identity     load a model, by name; which files that name stands for
    architectures                               sizes, parameters and memory, before anything is loaded
    adapters, linears, heads                    what a state is made of, and where it acts
    steered                                     the model under a state: log-probabilities, generation; read this first
    tokens, reader, encoding                    items as the model reads them, one by one and in batches
    ways, agreement                             how batches may be read, and the trials that find out which way is right
    scoring                                     how good a state is
    pyreft_format                               states to pyreft's files, and back

`fast` holds what is there for speed alone. Nothing here knows of clients that learn from each other.
"""
