"""What talks to enclaves: verification, attested HTTP transports, a local endpoint."""
