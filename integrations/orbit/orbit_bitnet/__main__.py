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
    sys.path[:0] = [str(Path(__file__).parent / "stand_in"), str(server)]
    sys.argv = [str(server / "main.py"), *arguments]
    try:
        stand_in = importlib.import_module("main")
    except ImportError as error:
        sys.exit(f"error: {error}")
    stand_in.main()


if __name__ == "__main__":
    main()
