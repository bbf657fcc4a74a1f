"""The exact answer cache: answers an identical request with the stored answer, without a call to an expert.

`key` decides which requests use it and under which key, `answer` what is stored. The step of a request is in
`gateway.request.cache_step`.
"""
