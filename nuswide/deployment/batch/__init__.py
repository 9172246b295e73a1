"""Tags for many pictures: a model, a folder of pictures, a folder of Parquet.

`job` has the order of things, `local` and `spark` an engine each. None needs torch. Workers of
Spark import `decode` alone, which needs no more than the model does.
"""
