// Package helm tries the chart in deploy/helm: it renders it with Helm's own library,
// decodes what comes out into the types of Kubernetes, KEDA and the Prometheus operator,
// and checks how the objects fit together.
//
// It is a module of its own, so that nothing of this gets into the program.
package helm

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

const chartDir = "../../deploy/helm/penstock"

// release is where the chart is rendered to.
const (
	release   = "logs"
	namespace = "telemetry"
)

// kinds are all that the chart may make. A kind that is not here is a mistake, a Secret
// above all.
var kinds = map[string]func() metav1.Object{
	"v1 ConfigMap":                            func() metav1.Object { return &corev1.ConfigMap{} },
	"v1 Service":                              func() metav1.Object { return &corev1.Service{} },
	"v1 ServiceAccount":                       func() metav1.Object { return &corev1.ServiceAccount{} },
	"apps/v1 Deployment":                      func() metav1.Object { return &appsv1.Deployment{} },
	"apps/v1 StatefulSet":                     func() metav1.Object { return &appsv1.StatefulSet{} },
	"batch/v1 Job":                            func() metav1.Object { return &batchv1.Job{} },
	"policy/v1 PodDisruptionBudget":           func() metav1.Object { return &policyv1.PodDisruptionBudget{} },
	"networking.k8s.io/v1 NetworkPolicy":      func() metav1.Object { return &networkingv1.NetworkPolicy{} },
	"networking.k8s.io/v1 Ingress":            func() metav1.Object { return &networkingv1.Ingress{} },
	"autoscaling/v2 HorizontalPodAutoscaler":  func() metav1.Object { return &autoscalingv2.HorizontalPodAutoscaler{} },
	"keda.sh/v1alpha1 ScaledObject":           func() metav1.Object { return &ScaledObject{} },
	"monitoring.coreos.com/v1 ServiceMonitor": func() metav1.Object { return &monitoringv1.ServiceMonitor{} },
	"monitoring.coreos.com/v1 PrometheusRule": func() metav1.Object { return &monitoringv1.PrometheusRule{} },
}

func loadChart(t testing.TB) *chart.Chart {
	t.Helper()
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// template is what helm template does: check the values by the schema, then render.
func template(t testing.TB, values map[string]any, name string) (map[string]string, error) {
	t.Helper()
	c := loadChart(t)
	all, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: name, Namespace: namespace, Revision: 1, IsInstall: true}, chartutil.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(c, all)
	for name, text := range files {
		if strings.Contains(text, "<no value>") {
			return nil, fmt.Errorf("%s uses a value that is not there:\n%s", name, text)
		}
	}
	return files, err
}

// rendered is what the chart makes of values.
type rendered struct {
	text    string // all manifests, in a fixed order
	notes   string
	objects []metav1.Object
}

func render(t testing.TB, values map[string]any) rendered {
	t.Helper()
	return renderAs(t, values, release)
}

func renderAs(t testing.TB, values map[string]any, name string) rendered {
	t.Helper()
	files, err := template(t, values, name)
	if err != nil {
		t.Fatal(err)
	}
	var r rendered
	var names []string
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		text := files[name]
		if strings.HasSuffix(name, "NOTES.txt") {
			r.notes = text
			continue
		}
		docs := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text)))
		for {
			doc, err := docs.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if !meaningful(doc) {
				continue
			}
			object, err := decode(doc)
			if err != nil {
				t.Fatalf("%s: %v\n%s", name, err, doc)
			}
			r.objects = append(r.objects, object)
			r.text += "---\n# Source: " + filepath.Base(name) + "\n" + strings.Trim(string(doc), "\n") + "\n"
		}
	}
	return r
}

// meaningful tells whether a document is more than comments.
func meaningful(doc []byte) bool {
	for _, line := range bytes.Split(doc, []byte("\n")) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return true
		}
	}
	return false
}

// decode refuses unknown and repeated keys, as the API server does when asked to be strict.
func decode(doc []byte) (metav1.Object, error) {
	var head metav1.TypeMeta
	if err := yaml.Unmarshal(doc, &head); err != nil {
		return nil, err
	}
	made, ok := kinds[head.APIVersion+" "+head.Kind]
	if !ok {
		return nil, fmt.Errorf("%s %s is no kind that the chart should make", head.APIVersion, head.Kind)
	}
	object := made()
	if scaled, ok := object.(*ScaledObject); ok {
		return scaled, scaled.decode(doc)
	}
	if err := yaml.UnmarshalStrict(doc, object); err != nil {
		return nil, fmt.Errorf("%s: %w", head.Kind, err)
	}
	return object, nil
}

// all are the objects of one type.
func all[T any](r rendered) []*T {
	var found []*T
	for _, o := range r.objects {
		if o, ok := any(o).(*T); ok {
			found = append(found, o)
		}
	}
	return found
}

// named is the object of a type and a name.
func named[T any](t testing.TB, r rendered, name string) *T {
	t.Helper()
	for _, o := range all[T](r) {
		if any(o).(metav1.Object).GetName() == name {
			return o
		}
	}
	t.Fatalf("there is no %T %s", *new(T), name)
	return nil
}

// pod is a pod that the chart has made, whatever of.
type pod struct {
	name   string // of the object that makes it
	part   string
	labels map[string]string
	spec   corev1.PodSpec
	// claims are the names of its volume claims.
	claims   []string
	selector *metav1.LabelSelector
	meta     metav1.ObjectMeta
}

func pods(r rendered) []pod {
	var found []pod
	add := func(m metav1.ObjectMeta, tmpl corev1.PodTemplateSpec, selector *metav1.LabelSelector, claims ...string) {
		found = append(found, pod{m.Name, tmpl.Labels["app.kubernetes.io/component"], tmpl.Labels, tmpl.Spec, claims, selector, m})
	}
	for _, o := range all[appsv1.Deployment](r) {
		add(o.ObjectMeta, o.Spec.Template, o.Spec.Selector)
	}
	for _, o := range all[appsv1.StatefulSet](r) {
		var claims []string
		for _, c := range o.Spec.VolumeClaimTemplates {
			claims = append(claims, c.Name)
		}
		add(o.ObjectMeta, o.Spec.Template, o.Spec.Selector, claims...)
	}
	for _, o := range all[batchv1.Job](r) {
		add(o.ObjectMeta, o.Spec.Template, nil)
	}
	return found
}

// cases are the values of testdata, by name.
func cases(t testing.TB) map[string]map[string]any {
	t.Helper()
	files, err := filepath.Glob("testdata/*.values.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no values in testdata: %v", err)
	}
	found := map[string]map[string]any{}
	for _, file := range files {
		found[strings.TrimSuffix(filepath.Base(file), ".values.yaml")] = values(t, file)
	}
	return found
}

func values(t testing.TB, file string) map[string]any {
	t.Helper()
	v, err := chartutil.ReadValuesFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// with is a copy of values in which the keys of a YAML text are set.
func with(t testing.TB, base map[string]any, text string) map[string]any {
	t.Helper()
	over, err := chartutil.ReadValues([]byte(text))
	if err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	data, err := yaml.Marshal(base)
	if err != nil {
		t.Fatal(err)
	}
	copied, err := chartutil.ReadValues(data)
	if err != nil {
		t.Fatal(err)
	}
	return chartutil.CoalesceTables(over, copied)
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is out of date; look at the difference and run: UPDATE_GOLDEN=1 go test ./...\n%s", path, firstDifference(string(want), got))
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range w {
		if i >= len(g) || w[i] != g[i] {
			there := "(nothing)"
			if i < len(g) {
				there = g[i]
			}
			return fmt.Sprintf("line %d: has %q, now %q", i+1, w[i], there)
		}
	}
	return fmt.Sprintf("line %d: now there is more: %q", len(w)+1, g[len(w)])
}
