// SPDX-License-Identifier: Apache-2.0

// Command gates prints the feature gates of kube-proxy as src/config/gates.txt has them: those that its
// packages register, of every component.
package main

import (
	"fmt"
	"slices"
	"strings"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/featuregate"
	_ "k8s.io/kubernetes/cmd/kube-proxy/app"
)

const head = `# Feature gates that kube-proxy v1.37 accepts: name, stage, default (with a "!" if nothing else may be set), and the
# gates that must be on with it. Made by: cd hack/testbed && go run ./cmd/gates >../../src/config/gates.txt`

func main() {
	all := utilfeature.DefaultMutableFeatureGate.GetAll()
	needs := utilfeature.DefaultMutableFeatureGate.Dependencies()
	var lines []string
	for name, spec := range all {
		fields := []string{string(name), stage(spec.PreRelease), fmt.Sprint(spec.Default)}
		if spec.LockToDefault {
			fields[2] += "!"
		}
		var others []string
		for _, other := range needs[name] {
			others = append(others, string(other))
		}
		slices.Sort(others)
		lines = append(lines, strings.Join(append(fields, others...), " "))
	}
	slices.Sort(lines)
	fmt.Println(head)
	fmt.Println(strings.Join(lines, "\n"))
}

func stage(release any) string {
	switch release {
	case featuregate.Alpha:
		return "alpha"
	case featuregate.Beta:
		return "beta"
	case featuregate.Deprecated:
		return "deprecated"
	default:
		return "ga"
	}
}
