#!/usr/bin/env bash
# Prints a file of this folder with the values of values.env, or of the file named by VALUES, in place of each ${NAME}.
#
#     cluster/fill.sh cluster/aws.yaml > aws-filled.yaml
#
# All other names, as $HOME, are left to the machine that reads them.
set -euo pipefail

file=${1:?usage: cluster/fill.sh FILE}
values=${VALUES:-"$(dirname "${BASH_SOURCE[0]}")/values.env"}
known=$(sed -nE 's/^([A-Z][A-Z0-9_]*)=.*/\1/p' "$values")
# shellcheck disable=SC2016
used=$(grep -oE '\$\{[A-Z][A-Z0-9_]*\}' "$file" | tr -d '${}' | sort -u || true)

set -a
# shellcheck source=/dev/null
source "$values"
set +a

for name in $used; do
    if ! grep -qx "$name" <<< "$known"; then
        echo "$file uses \${$name}, which $values does not hold." >&2
        exit 2
    fi
    if [[ ${!name} == *CHANGE* ]]; then
        echo "$file needs $name: set it in $values." >&2
        exit 2
    fi
done
# shellcheck disable=SC2016,SC2086
envsubst "$(printf '${%s} ' $known)" < "$file"
