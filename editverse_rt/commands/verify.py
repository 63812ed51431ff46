"""The command `verify`: a backend held to ort-cpu."""

from __future__ import annotations

import argparse

from editverse_rt.commands.arguments import Command, add_gpu_options, add_request_options, gpu_options
from editverse_rt.commands.terminal import EXIT_OK, print_json
from editverse_rt.quality.verify import describe_verification, verify_backend

__all__ = ["VERIFY"]

EXAMPLES = """\
examples:
  editverse-rt verify --backend ort-cuda
  editverse-rt verify BUNDLE --backend tensorrt-rtx
  editverse-rt verify nano-plugin --backend tensorrt --plugin LIB --reference nano

The held-out edits that the bundle carries, or a few made-up ones, on the backend and on ort-cpu, from the
same seed: how many come out right on each, and how near the results are. Plans that pass get a stamp, and are
used from then on without --allow-unverified.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="?", default="nano", help="name or folder (default: nano)")
    parser.add_argument("--backend", required=True, help="a name from `editverse-rt doctor`")
    add_request_options(parser, ("num_inference_steps",))
    parser.add_argument(
        "--reference",
        metavar="BUNDLE",
        help="another export of the checkpoint, for ort-cpu where it cannot run this one (plugin, bfloat16)",
    )
    add_gpu_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    report = verify_backend(
        args.bundle,
        args.backend,
        args.num_inference_steps,
        reference=args.reference,
        **gpu_options(args),
    )
    facts = report.report()
    if args.json:
        print_json(facts)
    else:
        print("\n".join(describe_verification(report)))
    return EXIT_OK


VERIFY = Command(EXAMPLES, add_arguments, run)
