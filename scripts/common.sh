# SPDX-License-Identifier: GPL-2.0-or-later
#
# Sourced by the shell scripts: where things are, and how to say things.
#
#   ROOT    the repository
#   BUILD   everything that is built or downloaded

ROOT=$(cd "$(dirname "$0")" && git rev-parse --show-toplevel 2>/dev/null) ||
    ROOT=$(cd "$(dirname "$0")/.." && pwd)
BUILD=${BUILD:-$ROOT/build}

# say STEP TEXT...: one line of progress
say()
{
    step=$1
    shift
    printf '[%s] %s\n' "$step" "$*"
}

# die TEXT...: an error, and the end
die()
{
    printf '%s: error: %s\n' "${0##*/}" "$*" >&2
    exit 1
}
