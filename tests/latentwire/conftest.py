"""Where the tests find the tiny models of other folders."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "backbones"))  # pretrained_models
