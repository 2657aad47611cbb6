"""The coordinator's server: one connection per agent, reports up, commands down."""
