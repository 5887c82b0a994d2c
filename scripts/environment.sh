# Sourced in the repository's root: .venv with the tested pins; on a bare clone it is made, and installed again only when
# the pins or pyproject.toml have changed. No network after that.
if [ ! -x .venv/bin/python ]; then
    for python in python3.11 python3.12 python3.13 python3; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi
        python=""
    done
    if [ -z "$python" ]; then
        echo "error: no Python 3.11 or later on the path" >&2
        exit 2
    fi
    "$python" -m venv .venv
fi

wanted=$(cat requirements.txt pyproject.toml | cksum)
if [ "$wanted" != "$(cat .venv/installed.cksum 2>/dev/null || true)" ]; then
    .venv/bin/pip install --quiet --requirement requirements.txt
    .venv/bin/pip install --quiet --no-deps --no-build-isolation --editable .
    echo "$wanted" >.venv/installed.cksum
fi
