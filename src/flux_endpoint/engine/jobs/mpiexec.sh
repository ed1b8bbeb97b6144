#!/bin/bash
# mpiexec.sh PYTHON LAUNCHER... -- COMMAND...: runs an MPI launcher so that its end is its ranks'.
#
# MPICH's tells its ranks that there is no more standard input; if these have all ended by then,
# which a busy machine brings about, it would die of SIGPIPE, and what they have written with it.
# Ranks get the signal's default action back from it.
trap '' PIPE
# Signals to the job reach the launcher by themselves; its end comes after its ranks'.
trap : HUP INT QUIT TERM USR1 USR2 ALRM
export FLUX_ENDPOINT_KILLED=${FLUX_JOB_TMPDIR:-/tmp}/killed.$$ # see mpi_rank.py
rank=("$1" -I -S "${0%/*}/mpi_rank.py")
shift
launcher=()
while [[ $1 != -- ]]; do
    launcher+=("$1")
    shift
done
shift
if [[ ${#launcher[@]} -eq 3 ]]; then
    # Launchers lose what ranks wrote just before they are ended: ranks write past them, unless
    # further options may want to do something to it.
    exec {out}>&1 {err}>&2
    export FLUX_ENDPOINT_OUTPUT="$out $err"
fi
# Further options of the launcher can't be told from a command: what begins with one is left alone.
[[ $1 != -* ]] || rank=()
"${launcher[@]}" "${rank[@]}" "$@"
status=$?
signal=$((status - 128))
# A rank that was killed ends this in the same way: an exit code can't tell it from one that exits.
if [[ $signal -gt 0 && -e $FLUX_ENDPOINT_KILLED.$signal ]]; then
    ulimit -c 0
    trap - PIPE HUP INT QUIT TERM USR1 USR2 ALRM
    kill -"$signal" $$
fi
exit "$status"
