"""Code that runs inside the sandbox: one process runs the answer, a second one runs the tests and decides.

Imports the standard library alone, since nothing else exists there.
"""
