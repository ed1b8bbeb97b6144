#!/bin/sh
# Two endpoints side by side, each in an instance of its own, in one allocation:
#
#     flux alloc -N4 examples/site/nested.sh
#
# Each has half of the allocation's nodes, a Flux of its own, and a queue of its own at the service.
work=$(dirname "$0")/work.py

flux alloc -N2 --endpoint=left "$work" left &
flux alloc -N2 --endpoint=right "$work" right || exit
wait $!
