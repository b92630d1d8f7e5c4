import os
import sys

from imago.trainer.ranks.stop_signals import hold_signals

# torch would report a lost rank in stack traces; Imago says it in one line
os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')
hold_signals()   # it comes before the import of torch, which takes seconds
from imago.trainer.tools.train import main  # noqa: E402

sys.exit(main())
