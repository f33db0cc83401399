"""Code for speed only. Each has a plain counterpart that gives the same numbers.

packed_attention    texts of a batch in one row             equals the padded batch
textbook_attention  attention of short texts, in parts      equals torch's own attention
frozen_block        a frozen block in few passes            equals the block's own forward pass
recast              inputs of additions, kept as they are   equals keeping a float32 copy
token_losses        losses that keep only the logits        equals torch's own cross-entropy
prepacked           generation with weights packed ahead    equals torch's own products
last_block          the last block, only where it is read   equals the whole block
hidden_cache        stored hidden states below the sites    equals computing them again
last_token          one token of each text                  equals reading the whole texts
owners              rows of several states in one batch     equals `core.sites.intervene`, one state at a time
cohort              several clients trained in one pass     equals `core.training.train`, one after another
"""
