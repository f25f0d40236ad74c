"""What may be done by whom: scopes of tokens, addresses that may be reached, signatures, encryption. No I/O."""
