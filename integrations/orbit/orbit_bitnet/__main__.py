"""`python -m orbit_bitnet serve --orbit DIR -- --config FILE`: Orbit's server with the services of this
package."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m orbit_bitnet", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve_parser = commands.add_parser(
        "serve",
        help="run Orbit's server with BitNetService as its provider bitnet",
        epilog="Example: python -m orbit_bitnet serve --orbit ~/orbit -- --config config/config.yaml",
    )
    serve_parser.add_argument(
        "--orbit", type=Path, default=Path(), metavar="DIR", help="Orbit's checkout (default: this folder)"
    )
    serve_parser.add_argument(
        "server_arguments", nargs="*", metavar="-- ARGUMENTS", help="those of Orbit's server/main.py"
    )
    given = parser.parse_args(arguments)
    serve(serve_parser, given.orbit, given.server_arguments)


def serve(parser: argparse.ArgumentParser, orbit: Path, arguments: list[str]) -> None:
    server = (orbit / "server").resolve()
    if not (server / "main.py").is_file():
        parser.error(
            f"there is no Orbit in {orbit.resolve()} (no server/main.py); give the folder of its checkout: "
            "git clone https://github.com/schmitech/orbit"
        )
    sys.path.insert(0, str(server))
    sys.argv = [str(server / "main.py"), *arguments]
    try:
        _replace_bundled()
    except ImportError as error:
        sys.exit(f"error: {error}")
    importlib.import_module("main").main()


def _replace_bundled() -> None:
    from orbit_bitnet.registration import replace_bundled

    replace_bundled()


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # one of the worker processes of `performance.workers`
    _replace_bundled()
