"""Meta-architectures and heads with RIB, and attention in backbones."""
