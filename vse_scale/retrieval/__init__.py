"""Retrieval: encoding, ranking, protocols, saved embeddings and search."""
