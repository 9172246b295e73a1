"""The HTTP server of a registered model: MLflow's scoring app behind checks of every request.

It needs no torch and runs no code from the registry: this package's own tagger scores with the
model's data.

    settings   the limits, each an option of `nuswide serve`; imports nothing
    requests   the body (JSON, an image, a multipart form) -> images and parameters
    errors     error responses
    model      a downloaded model -> the pyfunc that MLflow's app scores with
    origin     checks of the Host and Origin headers
    queue      the queue of requests that wait to be scored
    asgi       ASGI types, and responses with their headers
    limits     the ASGI app: routes, authentication, limits
    telemetry  the access log and /metrics
    page/      the web page
    server     sockets, worker processes, signals
"""
