#!/bin/sh
# Starts an MPI launcher that is not ended by SIGPIPE. MPICH's tells its ranks that there is no
# more standard input; if these have all ended by then, which a busy machine brings about, it would
# die, and what they have written with it. Ranks get the signal's default action back from it.
trap '' PIPE
exec "$@"
