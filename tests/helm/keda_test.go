package helm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	// Only for its files: the module has the definition of its resources, and a list of
	// what each scaler may be told. Its Go types would bring half of Kubernetes along.
	_ "github.com/kedacore/keda/v2/version"
	"github.com/santhosh-tekuri/jsonschema/v6"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// ScaledObject is what the tests look at of KEDA's.
type ScaledObject struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec struct {
		ScaleTargetRef  struct{ Name string }
		MinReplicaCount int
		MaxReplicaCount int
		Triggers        []struct {
			Type     string
			Metadata map[string]string
		}
	} `json:"spec"`
}

// keda has what the module of KEDA says of itself.
var keda = sync.OnceValues(func() (k struct {
	schema  *jsonschema.Schema
	scalers map[string]map[string]bool // parameters by scaler; true: it has to be there
}, err error,
) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/kedacore/keda/v2").Output()
	if err != nil {
		return k, fmt.Errorf("find the module of KEDA: %w", err)
	}
	dir := strings.TrimSpace(string(out))

	data, err := os.ReadFile(filepath.Join(dir, "config/crd/bases/keda.sh_scaledobjects.yaml"))
	if err != nil {
		return k, err
	}
	var crd struct {
		Spec struct {
			Versions []struct {
				Name   string
				Schema struct {
					OpenAPIV3Schema map[string]any `json:"openAPIV3Schema"`
				}
			}
		}
	}
	if err := yaml.Unmarshal(data, &crd); err != nil {
		return k, err
	}
	if len(crd.Spec.Versions) != 1 || crd.Spec.Versions[0].Name != "v1alpha1" {
		return k, errors.New("KEDA has other versions of the ScaledObject by now")
	}
	schema := crd.Spec.Versions[0].Schema.OpenAPIV3Schema
	schema["properties"].(map[string]any)["metadata"] = map[string]any{} // of Kubernetes
	strict(schema)
	text, err := json.Marshal(schema)
	if err != nil {
		return k, err
	}
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return k, err
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft7)
	if err := compiler.AddResource("scaledobject.json", parsed); err != nil {
		return k, err
	}
	if k.schema, err = compiler.Compile("scaledobject.json"); err != nil {
		return k, err
	}

	var list struct {
		Scalers []struct {
			Type       string
			Parameters []struct {
				Name     string
				Optional bool
				Default  any
			}
		}
	}
	if data, err = os.ReadFile(filepath.Join(dir, "schema/generated/scalers-metadata-schema.json")); err != nil {
		return k, err
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return k, err
	}
	k.scalers = map[string]map[string]bool{}
	for _, s := range list.Scalers {
		k.scalers[s.Type] = map[string]bool{}
		for _, p := range s.Parameters {
			k.scalers[s.Type][p.Name] = !p.Optional && p.Default == nil
		}
	}
	return k, nil
})

// strict refuses keys that a schema does not name, as the API server does when asked to.
func strict(schema any) {
	switch s := schema.(type) {
	case map[string]any:
		if _, has := s["properties"].(map[string]any); has && s["additionalProperties"] == nil && s["x-kubernetes-preserve-unknown-fields"] == nil {
			s["additionalProperties"] = false
		}
		for _, v := range s {
			strict(v)
		}
	case []any:
		for _, v := range s {
			strict(v)
		}
	}
}

func (s *ScaledObject) decode(doc []byte) error {
	k, err := keda()
	if err != nil {
		return err
	}
	text, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return err
	}
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return err
	}
	if err := k.schema.Validate(parsed); err != nil {
		return err
	}
	if err := json.Unmarshal(text, s); err != nil {
		return err
	}
	for _, trigger := range s.Spec.Triggers {
		known, ok := k.scalers[trigger.Type]
		if !ok {
			return fmt.Errorf("KEDA has no scaler %s", trigger.Type)
		}
		for name := range trigger.Metadata {
			if _, ok := known[name]; !ok {
				return fmt.Errorf("the scaler %s knows no %s", trigger.Type, name)
			}
		}
		for name, needed := range known {
			// The list says of some that they are needed which have a default in the code.
			if _, ok := trigger.Metadata[name]; !ok && needed && !slices.Contains([]string{"activationLagThreshold", "ignoreNullValues"}, name) {
				return fmt.Errorf("the scaler %s needs %s", trigger.Type, name)
			}
		}
	}
	return nil
}

// TestStrict sees the checks above refuse what they should: an object that decodes
// whatever is in it would prove nothing.
func TestStrict(t *testing.T) {
	scaled := "apiVersion: keda.sh/v1alpha1\nkind: ScaledObject\nmetadata: {name: x}\nspec:\n  scaleTargetRef: {name: x}\n  triggers:\n"
	jetstream := `  - {type: nats-jetstream, metadata: {natsServerMonitoringEndpoint: "n:8222", account: $G, stream: S, consumer: c, lagThreshold: "1"}}` + "\n"
	if _, err := decode([]byte(scaled + jetstream)); err != nil {
		t.Fatalf("a right one is refused: %v", err)
	}
	for name, doc := range map[string]string{
		"unknown key of a ScaledObject": scaled + jetstream + "  replicas: 3\n",
		"wrong type":                    scaled + jetstream + "  pollingInterval: often\n",
		"number in metadata":            strings.Replace(scaled+jetstream, `"1"`, "1", 1),
		"unknown scaler":                strings.Replace(scaled+jetstream, "nats-jetstream", "nats", 1),
		"unknown parameter":             strings.Replace(scaled+jetstream, "stream: S", "streams: S", 1),
		"missing parameter":             strings.Replace(scaled+jetstream, "stream: S, ", "", 1),
		"unknown key of a Deployment":   "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {replica: 1}\n",
		"repeated key":                  "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: b, a: c}\n",
		"a Secret":                      "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\n",
		"old version":                   "apiVersion: policy/v1beta1\nkind: PodDisruptionBudget\nmetadata: {name: x}\n",
	} {
		if _, err := decode([]byte(doc)); err == nil {
			t.Errorf("%s is not refused", name)
		}
	}
}
