"""Use of a trained model: export, quantization, the HTTP server, batch tagging."""
