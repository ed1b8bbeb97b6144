#!/bin/sh
# A cluster of four virtual nodes on one machine, with all that belongs to it:
#
#     flux start --test-size=4 examples/site/laptop.sh
set -e
flux-endpoint up --detach --endpoint laptop
trap 'flux-endpoint down' EXIT

"$(dirname "$0")/work.py" laptop
