"""What the sub-commands of `carb` share: PARAMS_FILE and -p, examples in their help, and errors in one line."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from carblib.base.errors import CarbError, nearest, refusals
from carblib.base.interrupts import end_like_interrupt
from carblib.base.memory import lowering
from carblib.base.processes import is_first

if TYPE_CHECKING:
    from carblib.params import Params

Body = Callable[..., int | None]


class Command(click.Command):
    """A command whose options that may be repeated take several words at once as well: `--variant plain paper`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write the option again before each further word, then parse as click does; an error says who took it."""
        several = {
            name
            for option in self.params
            if isinstance(option, click.Option) and option.multiple and option.nargs == 1
            for name in option.opts
        }
        words, option, taking = [], None, None
        for before, word in zip([None, *args], args, strict=False):
            if word.startswith("-"):
                option = word if word in several else None
            elif option and before != option:
                words.append(option)
                taking = option
            words.append(word)
        try:
            return super().parse_args(ctx, words)
        except click.BadParameter as error:
            if taking and args[0].startswith("-"):
                error.message = f"{error.message} Arguments go first: {taking} takes all words after it".strip()
            raise


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
RUN = click.argument("run_dir", metavar="RUN", type=PATH)
PARAMS_OF_RUN = click.option(
    "--params", "params_file", metavar="FILE", help="Parameters; default: the file given, or params.yaml in the folder."
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

    return takes_run(command)


def takes_run(body: Body) -> Body:
    """As `takes_params`, for a command that works in the run's folder: it leaves the parameters there."""

    @functools.wraps(body)
    def command(params: Params, **options: Any) -> int | None:
        with params_kept(params):
            return body(params, **options)

    return takes_params(command)


@contextlib.contextmanager
def params_kept(params: Params) -> Iterator[None]:
    """Leave the parameters in runs/<run>/params.yaml, and say in one line how they differ from those that lie there.

    Where the command within is refused, so that nothing was made with them, those that lay there are put back.
    """
    from carblib.base import files

    path, text = params.run_dir / "params.yaml", params.to_yaml()
    before = path.read_text("utf-8") if path.is_file() else None
    if before == text or not is_first():
        yield  # of several processes the first one does it
        return
    if before is not None and (differences := _differences(path, params)):
        print(f"{path}: {differences}; what lies there was made with the former")
    files.write_text(path, text)
    try:
        yield
    except CarbError:
        if before is not None:
            files.write_text(path, before)
        raise


def _differences(path: Path, params: Params) -> str:
    from carblib.base.stamps import Stamp, compare
    from carblib.params import load_params

    try:
        before = load_params(path)
    except CarbError as error:  # of another version of carblib, or edited
        return str(error)
    # Every key but those that only say where and how fast it works.
    old, new = (Stamp("", 1, one.that_affect("ablations")) for one in (before, params))
    return ", ".join(compare(old, new).made_otherwise)


def named_run(
    place: Path, params_file: str | None = None, overrides: Sequence[tuple[str, str]] = ()
) -> tuple[Path, Params | None]:
    """Return the folder of a run that is named by it or by its parameters file, and its parameters.

    They are those of `params_file`, else of the file that names the run; None stands for the params.yaml in its folder.
    """
    from carblib.params import load_params, resolve

    if place.suffix in (".yaml", ".yml"):
        given = load_params(place, dict(overrides))
        return given.run_dir, load_params(params_file, dict(overrides)) if params_file else given
    folder = place if place.is_dir() or not resolve(place).is_dir() else resolve(place)
    file = params_file or (folder / "params.yaml" if overrides else None)
    return folder, load_params(file, dict(overrides)) if file else None


at_least_one = click.IntRange(min=1)
positive = click.FloatRange(min=0, min_open=True)
renew_option = click.option("--renew", is_flag=True, help="Make anew what was made of other parameters or weights.")


def split_option(default: str) -> Callable[[Body], Body]:
    """Give a command the option --split; None stands for the parameters' `default` split."""
    return click.option("--split", "split_name", metavar="NAME", help=f"Split of the data set; default: {default}.")


def run_and_exit(carb: click.Group, words: Sequence[str]) -> NoReturn:
    """Run a command line and exit with its code.

    A CarbError, a file the system refuses (no permission, a full disk), memory that runs out and a mistake in the
    command line print one line and exit 2; Ctrl-C, SIGTERM and SIGHUP exit 130.
    """
    end_like_interrupt()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale of ASCII alone must not stop work over a name
    try:
        with refusals(), lowering("image_size, workers or --processes"):
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
