# Shared by the scripts beside it (sourced, bash): messages, a Python to build with, and mpirun's flags for this machine.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

note() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() { note "error: $*"; exit 2; }

# The value of an option that needs one: value_of --mpi "$@", with "$@" starting at the option.
value_of() { [ $# -ge 3 ] || die "$1 needs a value (see --help)"; printf '%s' "$3"; }

# Prints the comment block under the first line of the calling script: its help text.
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"; }

# Prints a Python >= 3.11 that can make virtual environments: $PYTHON, else the first that fits.
find_python() {
    local candidate tried=""
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        command -v "$candidate" >/dev/null || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' &>/dev/null; then
            "$candidate" -c 'import ensurepip, venv' &>/dev/null ||
                die "$candidate has no venv module (Debian and Ubuntu: apt-get install python3-venv)"
            command -v "$candidate"
            return
        fi
        tried+=" $candidate ($("$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo broken))"
    done
    die "needs Python >= 3.11; found:${tried:- none}. Install one, or name it: PYTHON=/path/to/python3.12 $0"
}

# Sets MPIRUN (array: the launcher and its flags) for the environment in folder $1, and exports what Open MPI asks of root.
# The library never does this: whether to run as root is the caller's decision, and these scripts are the caller here.
find_mpirun() {
    local mpirun=$1/bin/mpirun
    [ -x "$mpirun" ] || mpirun=$(command -v mpirun) ||
        die "no mpirun in $1/bin or PATH. Load the site's MPI (e.g. 'module load openmpi'), or use --mpi openmpi or --mpi mpich"
    MPIRUN=("$mpirun")
    case $("$mpirun" --version 2>&1) in
    *"Open MPI"* | *OpenRTE* | *PRRTE*)
        # More ranks than cores must start, and a rank tied to one core would starve its BLAS threads.
        MPIRUN+=(--map-by :OVERSUBSCRIBE --bind-to none)
        if [ "$(id -u)" = 0 ] && [ "${OMPI_ALLOW_RUN_AS_ROOT_CONFIRM:-}" != 1 ]; then
            export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
            note "running as root: set OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1, which Open MPI asks for"
        fi
        ;;
    esac
}
