"""Thin layers over pyca/cryptography: canonical JSON and documents, DSSE, HPKE contexts, streaming AEAD."""
