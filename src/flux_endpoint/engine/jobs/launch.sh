#!/bin/bash
# launch LAUNCHER... -- COMMAND...: starts the command by a launcher of Flux, whose job shell fills
# in what it finds between double braces in a command's words. A command with such words travels in
# a variable instead. Options of the launcher after the -- can't be told from the command: what
# begins with one is started as it is.
launcher=()
while [[ $1 != -- ]]; do
    launcher+=("$1")
    shift
done
shift
if [[ $* != *'{{'* || $1 == -* ]]; then
    exec "${launcher[@]}" "$@"
fi
printf -v FLUX_ENDPOINT_COMMAND '%q ' "$@"
export FLUX_ENDPOINT_COMMAND
exec "${launcher[@]}" /bin/bash -c \
    'words=$FLUX_ENDPOINT_COMMAND; unset FLUX_ENDPOINT_COMMAND; eval "exec $words"'
