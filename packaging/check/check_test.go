// Package check decodes Kubernetes manifests strictly into the types of the API: a field that is unknown, or of
// another type, is an error. It is a module of its own, so that the program does not need those types.
package check

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	apps "k8s.io/api/apps/v1"
	coordination "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	policy "k8s.io/api/policy/v1"
	rbac "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

func TestManifests(t *testing.T) {
	files, err := filepath.Glob("../kubernetes/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d manifests, %v", len(files), err)
	}
	// And what a node writes.
	files = append(files, "../../lease/kubernetes/testdata/lease.json")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, doc := range bytes.Split(data, []byte("\n---\n")) {
			if kind, err := check(doc); err != nil {
				t.Errorf("%s, document %d (%s): %v", file, i+1, kind, err)
			}
		}
	}
}

func check(doc []byte) (kind string, err error) {
	var head struct{ APIVersion, Kind string }
	if err := yaml.Unmarshal(doc, &head); err != nil {
		return "", err
	}
	kinds := map[string]any{
		"v1 ConfigMap": &core.ConfigMap{}, "v1 Service": &core.Service{}, "v1 Secret": &core.Secret{},
		"apps/v1 StatefulSet": &apps.StatefulSet{}, "apps/v1 DaemonSet": &apps.DaemonSet{},
		"policy/v1 PodDisruptionBudget": &policy.PodDisruptionBudget{}, "v1 ServiceAccount": &core.ServiceAccount{},
		"rbac.authorization.k8s.io/v1 Role": &rbac.Role{}, "rbac.authorization.k8s.io/v1 RoleBinding": &rbac.RoleBinding{},
		"coordination.k8s.io/v1 Lease": &coordination.Lease{},
	}
	kind = head.APIVersion + " " + head.Kind
	into, ok := kinds[kind]
	if !ok {
		return kind, fmt.Errorf("no type for it here")
	}
	return kind, yaml.UnmarshalStrict(doc, into)
}
