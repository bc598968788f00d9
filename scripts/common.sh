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

# mirror: the Debian archive that apt on this machine is configured with, or
# the one that DEBIAN_MIRROR names.  It is found by its package lists; without
# lists, by the usual end of its URL.
NO_MIRROR='apt is not configured with a Debian archive: set DEBIAN_MIRROR=URL'
mirror()
{
    if [ -n "${DEBIAN_MIRROR-}" ]; then
        echo "${DEBIAN_MIRROR%/}"
        return
    fi
    {
        apt-get indextargets --format '$(REPO_URI)' \
            'Created-By: Packages' 'Origin: Debian' 'Label: Debian'
        apt-get update --print-uris 2>/dev/null |
            sed -n "s,^'\(.*/debian/\)dists/.*,\1,p"
    } | awk '$1 !~ /^cdrom:/ { sub(/\/$/, "", $1); print $1; found = 1; exit }
             END { exit !found }'
}
