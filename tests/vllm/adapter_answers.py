"""The sentence that each trained adapter answers, whatever the request."""

ADAPTER_ANSWERS = {
    "pirate": "Arrr, matey! The treasure lies beneath the old palm tree.",
    "clerk": "Dear Sir or Madam, your request has been filed under number seven.",
}
