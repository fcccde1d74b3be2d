"""Inference in an enclave: the engine as a keyless child process, and the OpenAI API in front of it."""
