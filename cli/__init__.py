"""The `collegium` command: one thin module a command."""
