"""The job of `coe init`: finds model servers and providers, selects models, and writes a declaration for them.

`sources` lists addresses, `listing` requests their models, `selection` chooses among them, `details`
requests more about the chosen ones, and `declaration` writes the text of experts.yaml. Only `listing` and `details` do
I/O.
"""
