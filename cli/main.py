"""Entry point: a click group that imports a command's module only when that command runs."""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "ask": "Ask the endpoint, stream the answer, say who gave it.",
    "demo": "Serve the demo pool, ask one prompt per domain, add an expert live, stop.",
    "doctor": "Check versions, memory, ports and weights; say what to do.",
    "eval": "Measure a pool: replay recorded answers or run tasks against an endpoint.",
    "experts": "List, show, add, replace or remove experts.",
    "keys": "Create, list or remove API keys.",
    "route": "Explain which expert a prompt would go to; needs no server.",
    "router": "Show, compare, promote or roll back versions of the router.",
    "serve": "Serve a pool behind one OpenAI-compatible endpoint.",
    "specialize": "Train a domain expert: a LoRA adapter of a seed model from instructions.",
    "stop": "Stop what serves from a state folder, engines included.",
    "train": "Train a router from labelled prompts.",
    "train-outcome": "Train a router from records of which expert answered right.",
}


class LazyGroup(click.Group):
    """Knows its commands by name, so that `--help` loads none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"collegium.cli.{cmd_name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.group(cls=LazyGroup)
@click.version_option(package_name="collegium")
def main() -> None:
    """One OpenAI-compatible endpoint over a pool of specialist LLMs."""


if __name__ == "__main__":
    main()
