"""Thin layers over pyca/cryptography: canonical JSON, DSSE, HPKE contexts, streaming AEAD."""
