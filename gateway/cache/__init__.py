"""The exact answer cache: answers an identical request with the stored answer, without a call to an expert.

`step` decides which requests use it, under which key, and looks them up; `answer` is what is stored.
"""
