"""Split learning: an encoder server computes the shared encoder, devices compute stem and heads."""
