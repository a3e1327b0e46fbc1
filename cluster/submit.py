"""Submit a job to a Ray cluster and end as it ends: `python cluster/submit.py -- jobs/segment.py --input ...`.

The same as `unet submit`, which an installed package has.
"""

import sys

from unet.runtime.submit import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
