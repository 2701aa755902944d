#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# sigs.k8s.io/yaml 1.6.0, by which kube-proxy, the kubelet and kubectl read files: a merge (`<<: *anchor`) counts where
# it stands. Keys of the mapping that stand before it are replaced by the merged ones, keys behind it replace those. The
# YAML merge type says that a mapping's own keys always win, and go-yaml version 3 does that.
#
# Seen: {"after":{"bit":14},"before":{"bit":9},...}: `bit: 9` before the merge of a mapping with `bit: 14` is lost.
# Needs Go and git.
set -euo pipefail
folder=$(mktemp -d)
trap 'chmod -R u+w "$folder" && rm -rf "$folder"' EXIT
cd "$folder"
cat >go.mod <<'END'
module finding

go 1.22

require sigs.k8s.io/yaml v1.6.0
END
cat >main.go <<'END'
package main

import (
	"fmt"

	"sigs.k8s.io/yaml"
)

const text = `base: &base {bit: 14}
after: {bit: 9, <<: *base}
before: {<<: *base, bit: 9}
`

func main() {
	json, err := yaml.YAMLToJSON([]byte(text))
	fmt.Println(string(json), err)
}
END
seen=$(GOFLAGS=-mod=mod GOPATH=$folder/go GOCACHE=$folder/cache go run . 2>/dev/null)
expected='{"after":{"bit":14},"base":{"bit":14},"before":{"bit":9}} <nil>'
echo "$seen"
[[ $seen == "${1:-$expected}" ]] || { echo "changed: it was $expected" >&2 && exit 1; }
