import os
import sys

from imago.trainer.ranks.stop_signals import hold_signals

# of a rank that was lost torch would tell in stack traces; we do in one line
os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')
hold_signals()   # before imports that take seconds
from imago.trainer.train import main  # noqa: E402

sys.exit(main())
