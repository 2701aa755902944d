# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Shared by all scripts under `hack/`: messages, the cache directory, installing packages, toolchains
# and cleanup. Source it; it sets `-euo pipefail` and installs an EXIT trap.

set -euo pipefail

# Root of the repository.
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
# Downloads and builds outside the repository, kept between runs.
CACHE="${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/kube-proxy-rs"
export REPO CACHE

# --- messages (all on stderr: stdout belongs to results) -----------------------------------------

log() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
warn() { log "warning: $*"; }
die() {
    log "error: $*"
    exit 1
}

mkdir -p "$CACHE" 2>/dev/null || die "cannot create the cache directory $CACHE; set XDG_CACHE_HOME"

# --- cleanup -------------------------------------------------------------------------------------

# Commands to run on exit, in reverse order. Each is a string to evaluate.
CLEANUPS=()
# on_exit COMMAND...: runs COMMAND when the script exits, for whatever reason.
on_exit() { CLEANUPS+=("$(printf '%q ' "$@")"); }

# end_pid PID [SECONDS]: sends SIGTERM to a child of ours, then SIGKILL if it has not exited after
# SECONDS (default 10).
end_pid() {
    local pid=$1 limit=${2:-10} deadline
    kill -TERM "$pid" 2>/dev/null || return 0
    deadline=$((SECONDS + limit))
    while alive "$pid"; do
        if ((SECONDS >= deadline)); then
            kill -KILL "$pid" 2>/dev/null || true
            break
        fi
        sleep 0.05
    done
    wait "$pid" 2>/dev/null || true
}

# alive PID: whether the process exists and is not a zombie.
alive() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    [[ ${stat##*) } != Z* ]]
}

# end_tree PID: terminates a child of ours and all its descendants, parents first. Only processes that
# are still descendants are signalled, so a reused PID is never hit.
end_tree() {
    local pids=("$1") i child
    for ((i = 0; i < ${#pids[@]}; i++)); do
        for child in $(children_of "${pids[i]}"); do pids+=("$child"); done
    done
    [[ " $(children_of "$$" | tr '\n' ' ')" == *" $1 "* ]] || return 0
    kill -TERM "${pids[@]}" 2>/dev/null || true
    for i in "${pids[@]}"; do wait_for 10 gone "$i" || kill -KILL "$i" 2>/dev/null || true; done
}
children_of() {
    # Not `ps`: minimal systems lack it.
    { grep -lsE "^PPid:[[:space:]]+$1\$" /proc/[0-9]*/status || true; } | cut -d / -f 3
}
gone() { ! alive "$1"; }

# end_group PID: kills the process group that we started with `setsid`.
end_group() {
    kill -KILL -- "-$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

run_cleanups() {
    local code=$? i
    trap - EXIT
    trap '' INT TERM
    set +e
    for ((i = ${#CLEANUPS[@]} - 1; i >= 0; i--)); do eval "${CLEANUPS[i]}"; done
    exit "$code"
}
trap run_cleanups EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# make_scratch: creates the private directory $SCRATCH, removed on exit.
make_scratch() {
    SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/kpr-${0##*/}.XXXXXX")
    on_exit rm -rf "$SCRATCH"
}

# wait_for SECONDS COMMAND...: polls COMMAND until it succeeds; fails after SECONDS.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# --- packages and toolchains ---------------------------------------------------------------------

# need_packages PACKAGE...: installs those of the Debian packages that are missing.
need_packages() {
    local package missing=()
    command -v dpkg-query >/dev/null || die "needs programs of the Debian packages $*, but there is no dpkg to check for them"
    for package in "$@"; do
        package_installed "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    [[ $(id -u) == 0 ]] || die "missing packages: ${missing[*]}; run as root, or: apt-get install ${missing[*]}"
    command -v apt-get >/dev/null || die "missing packages: ${missing[*]}; there is no apt-get to install them"
    (
        # One script at a time, so that two do not contend for apt's locks.
        flock 9
        still=()
        for package in "${missing[@]}"; do
            package_installed "$package" || still+=("$package")
        done
        ((${#still[@]})) || exit 0
        log "installing ${still[*]}"
        export DEBIAN_FRONTEND=noninteractive
        apt=(apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
        # Package lists may be missing or stale; they are updated only if the installation fails.
        "${apt[@]}" install -y --no-install-recommends "${still[@]}" >"$CACHE/apt.log" 2>&1 ||
            { "${apt[@]}" update >"$CACHE/apt.log" 2>&1 &&
                "${apt[@]}" install -y --no-install-recommends "${still[@]}" >>"$CACHE/apt.log" 2>&1; } ||
            {
                tail -n 20 "$CACHE/apt.log" >&2
                die "could not install ${still[*]}"
            }
    ) 9>"$CACHE/apt.lock"
}

package_installed() {
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# need_root: for scripts that create network namespaces, taps and bridges.
need_root() { [[ $(id -u) == 0 ]] || die "must be run as root"; }

# need_rust [COMPONENT...]: requires cargo, new enough for Cargo.toml, a linker and the named rustup
# components (rustfmt, clippy). Sets CARGO_TARGET_DIR unless it is set.
need_rust() {
    local want have component
    if ! command -v cargo >/dev/null && [[ -x ${HOME:-/root}/.cargo/bin/cargo ]]; then
        export PATH="${HOME:-/root}/.cargo/bin:$PATH"
    fi
    want=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$REPO/Cargo.toml")
    command -v cargo >/dev/null || die "needs Rust $want or newer: no cargo in PATH or ~/.cargo/bin; see https://rustup.rs"
    have=$(cd "$REPO" && rustc --version | awk '{print $2}')
    newest_of "$want" "$have" "$have" || die "needs Rust $want or newer: rustc is $have; try: rustup update stable"
    command -v cc >/dev/null || need_packages gcc libc6-dev
    for component in "$@"; do
        case $component in
            rustfmt) cargo fmt --version >/dev/null 2>&1 && continue ;;
            clippy) cargo clippy --version >/dev/null 2>&1 && continue ;;
        esac
        command -v rustup >/dev/null || die "needs the Rust component $component, but there is no rustup to add it"
        log "adding the Rust component $component"
        rustup --quiet component add "$component" || die "could not add the Rust component $component"
    done
    export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$CACHE/target-$have}"
}

# build_with TOOL [OPTION]...: builds the proxy and the binary TOOL of crates/tools with cargo's OPTIONs.
build_with() {
    (cd "$REPO" && nice cargo build --locked -p kube-proxy-rs -p kpr-tools --bin kube-proxy-rs --bin "$@") ||
        die "could not build kube-proxy-rs and $1"
}

# need_go: requires a go command new enough for hack/testbed/go.mod, which may download a newer toolchain.
need_go() {
    local want have
    if ! command -v go >/dev/null && [[ -x /usr/local/go/bin/go ]]; then
        export PATH="/usr/local/go/bin:$PATH"
    fi
    want=$(sed -n 's/^go \(.*\)$/\1/p' "$REPO/hack/testbed/go.mod")
    command -v go >/dev/null || die "needs Go $want or newer: no go in PATH or /usr/local/go/bin; see https://go.dev/dl"
    have=$(cd "$REPO/hack/testbed" && go env GOVERSION) || die "needs Go $want or newer"
    newest_of "$want" "${have#go}" "${have#go}" || die "needs Go $want or newer: this is $have"
}

# newest_of A B EXPECTED: whether EXPECTED is the newer of versions A and B.
newest_of() { [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | tail -n 1) == "$3" ]]; }
