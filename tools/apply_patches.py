"""Patch the pretrain_gpt.py of a Megatron-LM checkout, so that it takes the SBP arguments.

The release is recognised by the file's SHA-256. docs/patches.md lists the releases.
"""

import argparse
from pathlib import Path

from megatron_sbp import cli, patches

PATCHES = Path(__file__).parents[1] / "patches"


def parse() -> argparse.Namespace:
    parser = cli.Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("checkout", metavar="CHECKOUT", help="root of the checkout")
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--check", action="store_true", help="say what there is to do, and do nothing"
    )
    only.add_argument("--reverse", action="store_true", help="remove the patch's lines again")
    parser.add_argument(
        "--patches",
        metavar="DIR",
        default=str(PATCHES),
        help="patches and their releases.yaml (default: those of this repository)",
    )
    return parser.parse_args()


def main() -> None:
    options = parse()
    target = patches.find(options.checkout, options.patches)
    print(f"{target.path}: of {target.tag}, {'patched' if target.patched else 'not patched'}")
    for insertion in target.insertions:
        for line in insertion.lines:
            print(f"  after line {insertion.after}: {line.decode().rstrip()}")
    if options.check:
        return
    if target.patched != options.reverse:
        print(f"already {'patched' if target.patched else 'without the patch'}, nothing to do")
    elif options.reverse:
        target.reverse()
        print("reversed: these lines are removed")
    else:
        target.apply()
        print("applied: these lines are inserted")


if __name__ == "__main__":
    cli.run(main)
