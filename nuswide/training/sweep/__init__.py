"""Sweeps: an Optuna study whose trials are training runs, by any number of workers.

`plan` reads the file, `propose` chooses the values of a trial, `store` keeps the study in SQLite or
PostgreSQL, `record` records it in MLflow, `worker` runs one trial after the other. There is no
training code here: a trial is `pipeline.train_and_register` with its own configuration.
"""
