"""What the sub-commands of `carb` share: PARAMS_FILE and -p, examples in their help, and errors in one line."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from carblib.base.errors import CarbError, nearest, refusals
from carblib.base.interrupts import end_like_interrupt

if TYPE_CHECKING:
    from carblib.params import Params

Body = Callable[..., int | None]


class Command(click.Command):
    """A command whose options that may be repeated take several words at once as well: `--variant plain paper`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write the option again before each further word, then parse as click does."""
        several = {
            name
            for option in self.params
            if isinstance(option, click.Option) and option.multiple and option.nargs == 1
            for name in option.opts
        }
        words, option = [], None
        for before, word in zip([None, *args], args, strict=False):
            if word.startswith("-"):
                option = word if word in several else None
            elif option and before != option:
                words.append(option)
            words.append(word)
        return super().parse_args(ctx, words)


class Commands(click.Group):
    """Commands listed in the order of a run, as they stand in this file; a misspelt one is answered by the nearest."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names in the order of their definition."""
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        """Find the command that the first word names."""
        if args[0] not in self.commands:
            hint = nearest(args[0], self.commands) or f"there are {', '.join(self.commands)}"
            raise click.UsageError(f"no command '{args[0]}'; {hint}", ctx)
        return super().resolve_command(ctx, args)


Commands.group_class = Commands


def example(*lines: str) -> str:
    """Return the end of a command's help: command lines that work as they stand."""
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])


PATH = click.Path(path_type=Path)
OVERRIDES = click.option(
    "-p", "overrides", nargs=2, multiple=True, metavar="KEY VALUE", help="Change one parameter; may be repeated."
)
PARAMS_OF_RUN = click.option(
    "--params", "params_file", metavar="FILE", help="Parameters of the run; default: params.yaml in its folder."
)


def takes_params(body: Body) -> Body:
    """Give a command PARAMS_FILE and -p KEY VALUE, as papermill has them; it gets the checked Params as its first."""

    @click.argument("params_file")
    @OVERRIDES
    @functools.wraps(body)
    def command(params_file: str, overrides: Sequence[tuple[str, str]], **options: Any) -> int | None:
        from carblib.params import load_params

        return body(load_params(params_file, dict(overrides)), **options)

    return command


def takes_data(body: Body) -> Body:
    """As `takes_params`, for a command that reads the run's images: scenes that are missing are rendered first."""

    @functools.wraps(body)
    def command(params: Params, **options: Any) -> int | None:
        from carblib.scenes.folders import ensure_scenes

        ensure_scenes(params)
        return body(params, **options)

    return takes_params(command)


renew_option = click.option("--renew", is_flag=True, help="Make anew what was made of other parameters or weights.")


def split_option(default: str) -> Callable[[Body], Body]:
    """Give a command the option --split; None stands for the parameters' `default` split."""
    return click.option("--split", "split_name", metavar="NAME", help=f"Split of the data set; default: {default}.")


def run_and_exit(carb: click.Group, words: Sequence[str]) -> NoReturn:
    """Run a command line and exit with its code.

    A CarbError, a file the system refuses (no permission, a full disk) and a mistake in the command line print one line
    and exit 2; Ctrl-C, SIGTERM and SIGHUP exit 130.
    """
    end_like_interrupt()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale of ASCII alone must not stop work over a name
    try:
        with refusals():
            code = carb.main(list(words) or ["--help"], "carb", standalone_mode=False)
    except click.ClickException as error:
        where = getattr(error, "ctx", None)
        hint = f" See {where.command_path} --help." if where else ""
        print(f"error: {' '.join(error.format_message().split()).rstrip('.')}.{hint}", file=sys.stderr)
        code = 2
    except CarbError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code or 0)
