"""The server of a registered model: MLflow's scoring app behind a gate that trusts no caller.

Owns what happens between a socket and the model. Never trains, needs no torch, and runs none of the
code that a registry holds: the bundle's data is scored by this package's own tagger.

    settings   the limits, each an option of `nuswide serve`; imports nothing
    forms      a body (JSON, a picture, a form) -> pictures and params
    refusals   what a caller is told when it is told no
    model      a bundle -> the pyfunc that MLflow's app scores with
    origin     the names that the server goes by, and pages of other sites
    turns      the queue
    exchange   ASGI's terms, and the headers of every answer
    gate       the ASGI app: who may ask for what, and in which order
    telemetry  the access log and /metrics
    page/      the try-it page
    server     sockets, worker processes, signals
"""
