#!/usr/bin/env bash
# The tests with the lowest versions that requirements.txt admits, in an environment of their own.
#
#   scripts/lowest_versions.sh [FOLDER] [pytest arguments]
#
# FOLDER   the environment (default .venv-lowest); made if it is not there, some 6 GB
#
# Give a Python that those versions were made for: PYTHON=python3.11 scripts/lowest_versions.sh
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv-lowest}; shift || true

lowest=$(mktemp); trap 'rm -f "$lowest"' EXIT
sed -nE 's/^([A-Za-z0-9_.-]+)>=([0-9.]+).*/\1==\2/p' requirements.txt >"$lowest"
[ "$(wc -l <"$lowest")" -eq "$(grep -cE '^[A-Za-z]' requirements.txt)" ] ||
  { echo "lowest_versions.sh: every line of requirements.txt must begin with NAME>=VERSION" >&2; exit 2; }

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$lowest" --editable '.[dev]'
sed 's/==/ /' "$lowest" | while read -r name version; do
  "$venv/bin/python" -c "from importlib.metadata import version; print('$name', version('$name'))"
done
"$venv/bin/python" -m pytest -m 'not slow' "$@"
