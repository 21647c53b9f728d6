"""gRPC: channels and servers whose calls go through the same stacks as HTTP. Loaded when they are first used."""
