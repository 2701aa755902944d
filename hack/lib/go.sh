# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Builds programs from Go modules once and keeps them in the cache directory. Source it after common.sh.

# go_program MODULE BIN NAME PACKAGE [OPTION]...: builds BIN/NAME with `go build OPTION...`, or for a NAME that
# ends in `.test` with `go test -c OPTION...`, in the directory MODULE, unless it exists and no source file of ours in
# MODULE is newer. Concurrent callers wait for each other.
go_program() {
    local module=$1 bin=$2 name=$3 package=$4 verb=(build)
    shift 4
    [[ $name != *.test ]] || verb=(test -c -vet=off)
    if go_program_is_fresh; then return 0; fi
    need_go
    command -v cc >/dev/null || export CGO_ENABLED=0
    mkdir -p "$bin"
    (
        flock 9
        if go_program_is_fresh; then exit 0; fi
        log "building $name (takes minutes the first time)"
        started=$SECONDS
        cd "$module" || die "no directory $module"
        # Stripped: a smaller file starts faster.
        nice go "${verb[@]}" -mod=readonly -buildvcs=false -trimpath "$@" -o "$bin/.$name.$$" "$package" || die "could not build $name"
        mv -f "$bin/.$name.$$" "$bin/$name"
        log "built $name in $((SECONDS - started)) s ($(du -h "$bin/$name" | cut -f 1))"
    ) 9>"$bin/.lock"
}

# Uses the variables of go_program. Only packages of ours can be older than their sources.
go_program_is_fresh() {
    [[ -x $bin/$name ]] || return 1
    [[ $package != ./* ]] || [[ -z $(find "$module/$package" -name '*.go' -newer "$bin/$name") ]]
}

# go_key MODULE...: key for the versions that the modules pin.
go_key() {
    local module
    for module in "$@"; do cat "$module/go.mod" "$module/go.sum"; done | sha256sum | cut -c 1-12
}
