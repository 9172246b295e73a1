"""Batch tagging: many images with one model, into a folder of Parquet files.

`job` runs a tagging from start to end; `local` and `spark` are the engines. Nothing here needs
torch. Spark's executors import `decode` only, which needs no more than the model does.
"""
