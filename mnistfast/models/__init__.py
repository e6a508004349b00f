"""The named models (zoo, backbones), and which of their weights a fine-tuning learns (adapters). Imports `errors`."""
