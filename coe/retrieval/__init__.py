"""Documents that experts may be given passages of: stores behind one Protocol, and what fills them."""
