import sys

from trainer.signals import hold_signals

hold_signals()   # before imports that take seconds
from trainer.train import main  # noqa: E402

sys.exit(main())
