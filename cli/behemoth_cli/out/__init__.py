"""How values reach the terminal, a pipe or a script. Knows no run; `behemoth_cli.views` makes what is shown here."""
