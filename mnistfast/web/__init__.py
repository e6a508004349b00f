"""The demo's page, the server that answers it, and who may ask (visitors). Imports `data`, `errors` and `results`."""
