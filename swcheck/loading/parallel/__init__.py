"""One model shared among the processes of torchrun, by transformers' tensor parallelism.

``plan`` says which linear maps are shared, ``group`` joins the processes, ``shards`` makes one matrix of the rows that
the processes keep. Every process runs the same calls in the same order: reading a shared matrix is one of all.
"""
