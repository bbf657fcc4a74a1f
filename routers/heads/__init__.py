"""Classification heads of the router: lexical, static, linear and nearest-neighbour."""
