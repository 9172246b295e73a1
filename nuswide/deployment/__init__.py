"""A trained model outside of training: export, int8, the server, batch tagging."""
