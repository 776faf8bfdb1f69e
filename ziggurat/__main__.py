# SPDX-License-Identifier: Apache-2.0
"""``python -m ziggurat`` is ``ziggurat``."""

import sys

from ziggurat.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
