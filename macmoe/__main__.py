"""Run the command line: as `macmoe`, or as `python -m macmoe`."""

import sys


def main() -> None:
    """Run the command line of this process; Ctrl-C is quiet even while it is being imported."""
    try:
        from macmoe.cli import cli  # noqa: PLC0415
        from macmoe.cli.streams import open_closed_streams  # noqa: PLC0415

        open_closed_streams()
        cli(prog_name="macmoe")
    except KeyboardInterrupt:
        sys.exit(130)  # as macmoe.cli does inside a command


if __name__ == "__main__":
    main()
