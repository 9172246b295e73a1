"""Sweeps: an Optuna study whose trials are training runs, by any number of workers.

`plan` reads the file, `propose` says what is tried next, `store` keeps the study in SQLite or
PostgreSQL, `record` is its side in MLflow, `worker` does trial after trial. No training code of its
own: a trial is `jobs.train_and_register` with another config.
"""
