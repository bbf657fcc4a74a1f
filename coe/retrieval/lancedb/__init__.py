"""Document store in a folder, with LanceDB."""
