"""Retrieval: the document store, ingestion, and the gate that decides when passages are used."""
