"""Split training: the general model computed on a host, stem and heads on devices."""
