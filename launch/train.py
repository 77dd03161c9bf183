"""What the ``deepspeed`` launcher runs, once per rank: see ``vse_scale/training/trainer.py``.

deepspeed --num_gpus 2 launch/train.py --config launch/recipes/demo.yaml [section.key=value ...]
"""

import sys

from vse_scale.training.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
