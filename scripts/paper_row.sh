#!/usr/bin/env bash
# One row of the paper; see scripts/paper_row.py --help. PYTHON names the interpreter, else python3.
exec "${PYTHON:-python3}" "$(dirname "$0")/paper_row.py" "$@"
