"""`behemoth completion`: scripts that ask this program what comes next."""

from __future__ import annotations

from typing import Annotated

import typer

from behemoth_cli.context import Context
from behemoth_cli.errors import choose

_BASH = """\
_behemoth_completion() {
    local IFS=$'\\n'
    COMPREPLY=($(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _BEHEMOTH_COMPLETE=complete_bash behemoth))
}
complete -o default -F _behemoth_completion behemoth
"""
_ZSH = """\
#compdef behemoth
_behemoth_completion() {
    eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _BEHEMOTH_COMPLETE=complete_zsh behemoth)
}
compdef _behemoth_completion behemoth
"""
_FISH = """\
function __behemoth_complete
    env _BEHEMOTH_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=$argv[1] \\
        _TYPER_COMPLETE_ARGS=(commandline -cp) behemoth
end
complete --command behemoth --no-files --arguments "(__behemoth_complete get-args)" \\
    --condition "__behemoth_complete is-args"
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_HINTS = {
    "bash": "behemoth completion bash > ~/.local/share/bash-completion/completions/behemoth",
    "zsh": 'behemoth completion zsh > "${fpath[1]}/_behemoth"',
    "fish": "behemoth completion fish > ~/.config/fish/completions/behemoth.fish",
}

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def completion(
    ctx: typer.Context,
    shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.", show_default=False)],
) -> None:
    """Print a completion script for bash, zsh or fish."""
    context: Context = ctx.obj
    choose(shell, SCRIPTS, name="shell")
    context.console.write(SCRIPTS[shell])
    if context.console.is_terminal:
        context.console.note(f"hint: {_HINTS[shell]}")
