"""Is it allowed? Verified evidence, reference values and policy in, result (EAR) out. No I/O."""
