"""Classification heads: lexical, static, linear and nearest-neighbour."""
