"""The server under test, started the way each scenario needs it."""
