"""What is there for speed alone, each beside a plain path that gives the same numbers.

packed_attention    texts of a batch in one row             equals the padded batch
last_block          the last block where it is read alone   equals the whole block
hidden_cache        states below the first site, kept       equals computing them again
owners              rows of several states in one batch     equals `core.sites.intervene`, a state at a time
cohort              several clients trained in one pass     equals `core.training.train`, one after another
"""
