"""The demo's page and the server that answers it."""
