#!/bin/bash
# launch LAUNCHER... -- COMMAND...: starts the command on ranks, by a launcher of Flux. Options of
# the launcher after the -- can't be told from the command: what begins with one is left alone.
launcher=()
while [[ $1 != -- ]]; do
    launcher+=("$1")
    shift
done
shift
if [[ ${launcher[*]:0:2} == "flux run" ]]; then
    # Ranks may end as far apart as they like; one that fails ends the others, who may wait for it.
    # The launcher's own options come later, and win.
    options=(-o exit-timeout=none -o exit-on-error -o output.batch-timeout=0.01)
    launcher=("${launcher[@]:0:2}" "${options[@]}" "${launcher[@]:2}")
fi
[[ $1 != -* ]] || exec "${launcher[@]}" "$@"
# Flux's job shell ends with the rank, and loses what it has not passed on by then.
# shellcheck disable=SC2016 # for the shells of the ranks to fill in
rank='trap : HUP INT QUIT TERM USR1 USR2 ALRM; "$@"; status=$?
[[ $status -eq 0 ]] || sleep 0.3
exit "$status"'
launcher+=(/bin/bash -c "$rank" rank)
[[ $* == *'{{'* ]] || exec "${launcher[@]}" "$@"
# Flux's job shell fills in what it finds between double braces in a command's words. A command with
# such words travels in a variable instead.
printf -v FLUX_ENDPOINT_COMMAND '%q ' "$@"
export FLUX_ENDPOINT_COMMAND
exec "${launcher[@]}" /bin/bash -c \
    'words=$FLUX_ENDPOINT_COMMAND; unset FLUX_ENDPOINT_COMMAND; eval "exec $words"'
