"""`editverse-rt serve` whose workers are those of `faulty_worker.py`, and that looks at uploads for 3 s only."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from editverse_rt.commands import serve
from editverse_rt.commands.main import main
from editverse_rt.serve import process
from editverse_rt.serve.settings import ServerSettings

if __name__ == "__main__":
    real_settings = serve.settings_from

    def settings_from(args: argparse.Namespace) -> ServerSettings:
        return replace(real_settings(args), prepare_s=3.0)

    serve.settings_from = settings_from
    process.WORKER = (sys.executable, str(Path(__file__).with_name("faulty_worker.py")))
    sys.exit(main(sys.argv[1:]))
