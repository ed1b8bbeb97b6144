#!/bin/sh
# An endpoint on a login node, which asks Flux for allocations as tasks come:
#
#     examples/site/blocks.sh
set -e
here=$(dirname "$0")
flux-endpoint configure login
cp "$here/blocks.yaml" "${FLUX_ENDPOINT_HOME:-$HOME/.flux_endpoint}/endpoints/login/config.yaml"
flux-endpoint start login --detach
trap 'flux-endpoint stop login' EXIT

"$here/work.py" login
flux jobs --no-header --name=flux-endpoint-block --format="{id.f58} {name}, {nnodes} nodes, {status}"
