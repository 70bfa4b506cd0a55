"""NumPyro's words for a bijection: transforms, distributions, guides, ELBOs."""
