"""Ingestion: files and texts become chunks in a document store."""
