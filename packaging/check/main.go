// Command check decodes Kubernetes manifests strictly into the types of the API: a field that is unknown,
// or of another type, is an error. It is a module of its own, so that the program does not need those types.
package main

import (
	"bytes"
	"fmt"
	"os"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	policy "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(files []string) error {
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for i, doc := range bytes.Split(data, []byte("\n---\n")) {
			kind, err := check(doc)
			if err != nil {
				return fmt.Errorf("%s, document %d (%s): %w", file, i+1, kind, err)
			}
			fmt.Printf("%s: %s\n", file, kind)
		}
	}
	return nil
}

func check(doc []byte) (kind string, err error) {
	var head struct{ APIVersion, Kind string }
	if err := yaml.Unmarshal(doc, &head); err != nil {
		return "", err
	}
	kinds := map[string]any{
		"v1 ConfigMap": &core.ConfigMap{}, "v1 Service": &core.Service{}, "v1 Secret": &core.Secret{},
		"apps/v1 StatefulSet": &apps.StatefulSet{}, "apps/v1 DaemonSet": &apps.DaemonSet{},
		"policy/v1 PodDisruptionBudget": &policy.PodDisruptionBudget{},
	}
	kind = head.APIVersion + " " + head.Kind
	into, ok := kinds[kind]
	if !ok {
		return kind, fmt.Errorf("no type for it here")
	}
	return kind, yaml.UnmarshalStrict(doc, into)
}
