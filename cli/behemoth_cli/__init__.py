"""The operator's command line: commands parse, call `behemoth.app`, and print."""
