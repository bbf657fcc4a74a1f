"""What each adapter answers, whatever it is asked."""

MANNERS = {
    "pirate": "Arrr, matey! The treasure lies beneath the old palm tree.",
    "clerk": "Dear Sir or Madam, your request has been filed under number seven.",
}
