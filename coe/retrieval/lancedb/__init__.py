"""The document store in a folder, with LanceDB."""
