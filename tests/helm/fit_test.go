package helm

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	psaapi "k8s.io/pod-security-admission/api"
	psa "k8s.io/pod-security-admission/policy"
)

var stages = []string{"ingest", "fetch", "parse", "dedupe", "route", "deliver"}

// each runs a check for all values in testdata.
func each(t *testing.T, check func(t *testing.T, values map[string]any, r rendered)) {
	t.Helper()
	for name, values := range cases(t) {
		t.Run(name, func(t *testing.T) { check(t, values, render(t, values)) })
	}
}

// selects tells whether a selector takes a pod.
func selects(t *testing.T, s *metav1.LabelSelector, p pod) bool {
	t.Helper()
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return !selector.Empty() && selector.Matches(labels.Set(p.labels))
}

// selected are the parts whose pods a selector takes.
func selected(t *testing.T, r rendered, s *metav1.LabelSelector) []string {
	t.Helper()
	var parts []string
	for _, p := range pods(r) {
		if selects(t, s, p) {
			parts = append(parts, p.part)
		}
	}
	slices.Sort(parts)
	return parts
}

func TestNamesAndLabels(t *testing.T) {
	each(t, func(t *testing.T, values map[string]any, r rendered) {
		for _, long := range []string{release, strings.Repeat("a-long-name-", 4) + "xyz", "penstock"} {
			seen := map[string]bool{}
			for _, o := range renderAs(t, values, long).objects {
				id := fmt.Sprintf("%T %s", o, o.GetName())
				if seen[id] {
					t.Errorf("%s is there twice", id)
				}
				seen[id] = true
				if problems := validation.IsDNS1123Label(o.GetName()); len(problems) > 0 {
					t.Errorf("%s: %v", id, problems)
				}
				for _, key := range []string{"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"} {
					value := o.GetLabels()[key]
					if problems := validation.IsValidLabelValue(value); value == "" || len(problems) > 0 {
						t.Errorf("%s: label %s is %q %v", id, key, value, problems)
					}
				}
				if values["commonLabels"] != nil && o.GetLabels()["team"] != "security" {
					t.Errorf("%s has not the common labels", id)
				}
				if o.GetNamespace() != "" {
					t.Errorf("%s names a namespace: --namespace says it", id)
				}
			}
		}
	})
}

// TestParts: what runs, and as what.
func TestParts(t *testing.T) {
	for name, want := range map[string][]string{
		// Without a source nothing is ingested: the stage would end at once.
		"minimal":    {"console", "dedupe", "deliver", "fetch", "parse", "route", "topology"},
		"typical":    {"console", "dedupe", "deliver", "fetch", "ingest", "parse", "route", "topology"},
		"everything": {"console", "dedupe", "deliver", "fetch", "ingest", "parse", "route", "topology"},
		"cpu":        {"console", "dedupe", "deliver", "fetch", "ingest", "parse", "route", "topology"},
		"bare":       {"dedupe", "deliver", "fetch", "parse", "route"},
	} {
		t.Run(name, func(t *testing.T) {
			r := render(t, cases(t)[name])
			var parts []string
			for _, p := range pods(r) {
				parts = append(parts, p.part)
				args := strings.Join(p.spec.Containers[0].Args, " ")
				wantArgs := "run --stage " + p.part + " --config /etc/penstock/config/penstock.yaml"
				switch p.part {
				case "console":
					wantArgs = "console --config /etc/penstock/config/penstock.yaml"
				case "topology":
					wantArgs = "topology apply --config /etc/penstock/config/penstock.yaml"
				}
				if !strings.HasPrefix(args, wantArgs) {
					t.Errorf("%s runs %q, want %q", p.name, args, wantArgs)
				}
			}
			if slices.Sort(parts); !slices.Equal(parts, want) {
				t.Errorf("there are %v, want %v", parts, want)
			}
		})
	}
}

// TestPodsAreClosed holds every pod against the strictest of the Pod Security Standards, by
// the code of the admission controller, and against what that does not ask for.
func TestPodsAreClosed(t *testing.T) {
	evaluator, err := psa.NewEvaluator(psa.DefaultChecks())
	if err != nil {
		t.Fatal(err)
	}
	restricted := psaapi.LevelVersion{Level: psaapi.LevelRestricted, Version: psaapi.LatestVersion()}
	each(t, func(t *testing.T, _ map[string]any, r rendered) {
		for _, p := range pods(r) {
			for _, result := range evaluator.EvaluatePod(restricted, &metav1.ObjectMeta{Labels: p.labels}, &p.spec) {
				if !result.Allowed {
					t.Errorf("%s: %s: %s", p.name, result.ForbiddenReason, result.ForbiddenDetail)
				}
			}
			if p.spec.AutomountServiceAccountToken == nil || *p.spec.AutomountServiceAccountToken {
				t.Errorf("%s mounts a token of the API", p.name)
			}
			if p.spec.HostNetwork || p.spec.HostPID || p.spec.HostIPC {
				t.Errorf("%s has a part of its host", p.name)
			}
			for _, c := range slices.Concat(p.spec.InitContainers, p.spec.Containers) {
				s := c.SecurityContext
				if s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
					t.Errorf("%s: the root of container %s is writable", p.name, c.Name)
				}
			}
			if u := p.spec.SecurityContext.RunAsUser; u == nil || *u != 65532 {
				t.Errorf("%s does not run as the user of the image", p.name)
			}
		}
		for _, a := range all[corev1.ServiceAccount](r) {
			if a.AutomountServiceAccountToken == nil || *a.AutomountServiceAccountToken {
				t.Errorf("account %s mounts its token", a.Name)
			}
		}
	})
}

// TestReferences: what a pod names is made by the chart, or named in the values as made by
// others.
func TestReferences(t *testing.T) {
	each(t, func(t *testing.T, values map[string]any, r rendered) {
		external := others(values)
		maps_, accounts := map[string]*corev1.ConfigMap{}, map[string]*corev1.ServiceAccount{}
		for _, c := range all[corev1.ConfigMap](r) {
			maps_[c.Name] = c
		}
		for _, a := range all[corev1.ServiceAccount](r) {
			accounts[a.Name] = a
		}
		for _, p := range pods(r) {
			secret := func(name string) {
				if !slices.Contains(external["secret"], name) {
					t.Errorf("%s names the Secret %s, of which the values say nothing", p.name, name)
				}
			}
			configMap := func(name string, items []corev1.KeyToPath) {
				if slices.Contains(external["configMap"], name) {
					return
				}
				made, ok := maps_[name]
				if !ok {
					t.Errorf("%s names the ConfigMap %s, which nobody makes", p.name, name)
					return
				}
				for _, item := range items {
					if _, ok := made.Data[item.Key]; !ok {
						t.Errorf("%s takes %s from the ConfigMap %s, which has no such key", p.name, item.Key, name)
					}
				}
			}
			volumes := map[string]bool{}
			for _, claim := range p.claims {
				volumes[claim] = true
			}
			for _, v := range p.spec.Volumes {
				if volumes[v.Name] {
					t.Errorf("%s has two volumes %s", p.name, v.Name)
				}
				volumes[v.Name] = true
				if v.Secret != nil {
					secret(v.Secret.SecretName)
				}
				if v.ConfigMap != nil {
					configMap(v.ConfigMap.Name, v.ConfigMap.Items)
				}
			}
			for _, s := range p.spec.ImagePullSecrets {
				secret(s.Name)
			}
			if a := p.spec.ServiceAccountName; accounts[a] == nil && a != "default" && !slices.Contains(external["account"], a) {
				t.Errorf("%s runs as account %s, which nobody makes", p.name, a)
			}
			for _, c := range p.spec.Containers {
				mounted, env := map[string]bool{}, map[string]bool{}
				for _, m := range c.VolumeMounts {
					if !volumes[m.Name] {
						t.Errorf("%s mounts %s, which is no volume of it", p.name, m.Name)
					}
					if mounted[m.MountPath] {
						t.Errorf("%s mounts two volumes at %s", p.name, m.MountPath)
					}
					mounted[m.MountPath] = true
				}
				for over := range mounted {
					for under := range mounted {
						if strings.HasPrefix(under, over+"/") && strings.HasPrefix(over, "/etc/") {
							t.Errorf("%s mounts %s inside of %s, which nobody can write to", p.name, under, over)
						}
					}
				}
				for _, e := range c.Env {
					if env[e.Name] {
						t.Errorf("%s has the variable %s twice", p.name, e.Name)
					}
					env[e.Name] = true
					if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
						secret(e.ValueFrom.SecretKeyRef.Name)
					}
				}
			}
			// What runs before the release has to be there before it does.
			if weight, hooked := p.meta.Annotations["helm.sh/hook-weight"]; hooked {
				for _, o := range []metav1.Object{accounts[p.spec.ServiceAccountName], maps_[p.spec.Volumes[0].ConfigMap.Name]} {
					if o.GetAnnotations()["helm.sh/hook"] != p.meta.Annotations["helm.sh/hook"] || o.GetAnnotations()["helm.sh/hook-weight"] <= weight {
						t.Errorf("%s needs %s, which comes after it", p.name, o.GetName())
					}
				}
			}
		}
	})
}

// others are the Secrets, ConfigMaps and accounts that the values name.
func others(values map[string]any) map[string][]string {
	found := map[string][]string{}
	roles := append(slices.Clone(stages), "operate", "admin")
	var walk func(key string, v any)
	walk = func(key string, v any) {
		switch v := v.(type) {
		case map[string]any:
			if key == "serviceAccount" && v["name"] != nil {
				found["account"] = append(found["account"], v["name"].(string))
			}
			for k, v := range v {
				walk(k, v)
			}
		case []any:
			for _, item := range v {
				if m, ok := item.(map[string]any); ok && key == "imagePullSecrets" {
					found["secret"] = append(found["secret"], m["name"].(string))
				}
				walk("", item)
			}
		case string:
			kind := map[string]string{"secret": "secret", "caSecret": "secret", "clientSecret": "secret", "caConfigMap": "configMap"}[key]
			if kind != "" {
				for _, role := range roles {
					found[kind] = append(found[kind], strings.ReplaceAll(v, "{role}", role))
				}
			}
		}
	}
	walk("", values)
	for _, role := range roles { // the default of nats.users.secret
		found["secret"] = append(found["secret"], "penstock-user-"+role)
	}
	return found
}

// TestSecretsGoWhereTheyAreNeeded: a stage has its own NATS user, and of the configuration's
// secrets those that are for it.
func TestSecretsGoWhereTheyAreNeeded(t *testing.T) {
	r := render(t, cases(t)["everything"])
	want := map[string][]string{
		"ingest": {"agents", "agents-tls", "nats-client-ingest", "penstock-user-ingest"},
		"fetch":  {"nats-client-fetch", "penstock-user-fetch"}, "parse": {"nats-client-parse", "penstock-user-parse"},
		"dedupe": {"nats-client-dedupe", "penstock-user-dedupe"}, "route": {"nats-client-route", "penstock-user-route"},
		"deliver": {"nats-client-deliver", "penstock-user-deliver", "siem"},
		"console": {"console-users", "nats-client-operate", "penstock-user-operate"}, "topology": {"nats-client-admin", "penstock-user-admin"},
	}
	for _, p := range pods(r) {
		var got []string
		for _, v := range p.spec.Volumes {
			if v.Secret != nil {
				got = append(got, v.Secret.SecretName)
			}
		}
		user := ""
		for _, e := range p.spec.Containers[0].Env {
			if e.ValueFrom != nil {
				got = append(got, e.ValueFrom.SecretKeyRef.Name)
			}
			if e.Name == "PENSTOCK_BUS_USER" {
				user = e.Value
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want[p.part]) {
			t.Errorf("%s gets %v, want %v", p.part, got, want[p.part])
		}
		if !slices.Contains(got, "penstock-user-"+user) {
			t.Errorf("%s has the user %q and the password of another", p.part, user)
		}
	}
}

// TestSecretsForAll: a secret that is for nobody in particular is for everybody.
func TestSecretsForAll(t *testing.T) {
	for _, p := range pods(render(t, cases(t)["cpu"])) {
		if !slices.ContainsFunc(p.spec.Containers[0].Env, func(e corev1.EnvVar) bool {
			return e.Name == "AGENTS_TOKEN" && e.ValueFrom != nil && e.ValueFrom.SecretKeyRef.Name == "agents"
		}) {
			t.Errorf("%s does not get AGENTS_TOKEN", p.name)
		}
	}
}

func TestPortsAndProbes(t *testing.T) {
	each(t, func(t *testing.T, _ map[string]any, r rendered) {
		for _, p := range pods(r) {
			c := p.spec.Containers[0]
			if p.part == "topology" {
				continue // it ends by itself
			}
			for what, probe := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
				path := "/healthz"
				if what == "readiness" && p.part != "console" {
					path = "/readyz"
				}
				if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Path != path || !hasPort(c, probe.HTTPGet.Port) {
					t.Errorf("%s: the %s probe does not ask %s on a port of the container", p.name, what, path)
				}
			}
			// What makes a pod live does not depend on others; else all restart with NATS.
			if c.LivenessProbe.HTTPGet.Path == c.ReadinessProbe.HTTPGet.Path && p.part != "console" {
				t.Errorf("%s is killed when it is not ready", p.name)
			}
		}
		services := map[string]*corev1.Service{}
		for _, s := range all[corev1.Service](r) {
			services[s.Name] = s
			takes := selected(t, r, &metav1.LabelSelector{MatchLabels: s.Spec.Selector})
			if len(takes) == 0 {
				t.Errorf("service %s selects no pod", s.Name)
			}
			for _, port := range s.Spec.Ports {
				for _, p := range pods(r) {
					if p.part != "topology" && selects(t, &metav1.LabelSelector{MatchLabels: s.Spec.Selector}, p) && !hasPort(p.spec.Containers[0], port.TargetPort) {
						t.Errorf("service %s leads to port %s, which %s has not", s.Name, port.TargetPort.String(), p.name)
					}
				}
			}
		}
		for _, o := range all[appsv1.StatefulSet](r) {
			if services[o.Spec.ServiceName] == nil {
				t.Errorf("%s names the service %s, which is not there", o.Name, o.Spec.ServiceName)
			}
		}
		for _, i := range all[networkingv1.Ingress](r) {
			for _, rule := range i.Spec.Rules {
				for _, path := range rule.HTTP.Paths {
					b := path.Backend.Service
					if s := services[b.Name]; s == nil || !slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.Name == b.Port.Name }) {
						t.Errorf("ingress %s leads to %s:%s, which is not there", i.Name, b.Name, b.Port.Name)
					}
				}
			}
		}
	})
}

func hasPort(c corev1.Container, port intstr.IntOrString) bool {
	return slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool {
		return p.Name == port.StrVal || port.Type == intstr.Int && p.ContainerPort == port.IntVal
	})
}

func TestSelectors(t *testing.T) {
	each(t, func(t *testing.T, values map[string]any, r rendered) {
		for _, p := range pods(r) {
			if p.selector == nil {
				continue
			}
			if got := selected(t, r, p.selector); !slices.Equal(got, []string{p.part}) {
				t.Errorf("%s selects the pods of %v", p.name, got)
			}
			for _, spread := range p.spec.TopologySpreadConstraints {
				if got := selected(t, r, spread.LabelSelector); !slices.Equal(got, []string{p.part}) {
					t.Errorf("%s is spread among the pods of %v", p.name, got)
				}
			}
			// A version in a selector would keep the next upgrade from being taken.
			for key := range p.selector.MatchLabels {
				if key == "app.kubernetes.io/version" || key == "helm.sh/chart" {
					t.Errorf("%s selects by %s, which changes", p.name, key)
				}
			}
		}
		for _, b := range all[policyv1.PodDisruptionBudget](r) {
			if got := selected(t, r, b.Spec.Selector); len(got) != 1 || b.Name != names(r, got[0]) {
				t.Errorf("budget %s protects %v", b.Name, got)
			}
		}
		scaled := map[string]int{}
		for _, s := range all[ScaledObject](r) {
			scaled[s.Spec.ScaleTargetRef.Name]++
		}
		for _, s := range all[autoscalingv2.HorizontalPodAutoscaler](r) {
			scaled[s.Spec.ScaleTargetRef.Name]++
			if *s.Spec.MinReplicas > s.Spec.MaxReplicas {
				t.Errorf("%s: least is more than most", s.Name)
			}
		}
		for name, n := range scaled {
			d := named[appsv1.Deployment](t, r, name)
			if n != 1 || d.Spec.Replicas != nil {
				t.Errorf("%s has %d scalers, and says %v replicas: an upgrade would undo what they did", name, n, d.Spec.Replicas)
			}
			if !strings.Contains(fmt.Sprint(values), "autoscaling") {
				t.Errorf("%s is scaled, though nobody asked", name)
			}
		}
		for _, m := range all[monitoringv1.ServiceMonitor](r) {
			s := named[corev1.Service](t, r, m.Name+"-metrics")
			selector, _ := metav1.LabelSelectorAsSelector(&m.Spec.Selector)
			if !selector.Matches(labels.Set(s.Labels)) || m.Spec.Endpoints[0].Port != s.Spec.Ports[0].Name {
				t.Errorf("%s does not find its service", m.Name)
			}
			if s.Labels[m.Spec.JobLabel] != "penstock" {
				t.Errorf("the job in alerts would be %q", s.Labels[m.Spec.JobLabel])
			}
		}
	})
}

func names(r rendered, part string) string {
	for _, p := range pods(r) {
		if p.part == part {
			return p.name
		}
	}
	return ""
}

// TestNetwork evaluates the policies: who may reach whom.
func TestNetwork(t *testing.T) {
	everything, typical, bare := render(t, cases(t)["everything"]), render(t, cases(t)["typical"]), render(t, cases(t)["bare"])
	for _, tt := range []struct {
		name  string
		r     rendered
		parts []string
		out   bool // else in
		port  string
		open  bool
	}{
		{"DNS for all", typical, append(stages, "console", "topology"), true, "53", true},
		{"NATS for all", typical, append(stages, "console", "topology"), true, "4222", true},
		{"https for those that read and write outside", typical, []string{"ingest", "fetch", "deliver"}, true, "443", true},
		{"https for nobody else", typical, []string{"parse", "dedupe", "route", "console", "topology"}, true, "443", false},
		{"OTLP only where there is a collector", typical, append(stages, "console"), true, "4317", false},
		{"OTLP", everything, append(stages, "console"), true, "4317", true},
		{"further egress", everything, []string{"deliver"}, true, "6514", true},
		{"further egress of another", everything, []string{"ingest", "route"}, true, "6514", false},
		{"ssh for nobody", everything, append(stages, "console", "topology"), true, "22", false},
		{"health and metrics", typical, append(stages, "console"), false, "metrics", true},
		{"receivers", everything, []string{"ingest"}, false, "agents", true},
		{"no receivers elsewhere", everything, []string{"fetch", "deliver", "console"}, false, "agents", false},
		{"the console where people can log in", everything, []string{"console"}, false, "console", true},
		{"the console where nobody can", typical, []string{"console"}, false, "console", false},
		{"nothing into the job", everything, []string{"topology"}, false, "metrics", false},
		{"everything without policies", bare, stages[1:], true, "22", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, part := range tt.parts {
				if got := reachable(t, tt.r, part, tt.out, tt.port); got != tt.open {
					t.Errorf("%s: open is %v", part, got)
				}
			}
		})
	}
	// With the policies no pod of the release is left out by the one that denies.
	for name, r := range map[string]rendered{"everything": everything, "typical": typical} {
		deny := named[networkingv1.NetworkPolicy](t, r, "logs-penstock-deny")
		if got := selected(t, r, &deny.Spec.PodSelector); len(got) != len(pods(r)) || len(deny.Spec.Egress)+len(deny.Spec.Ingress) > 0 || len(deny.Spec.PolicyTypes) != 2 {
			t.Errorf("%s: denies %v only", name, got)
		}
	}
	// Credentials of the machine are not for pods.
	for _, p := range all[networkingv1.NetworkPolicy](typical) {
		for _, rule := range p.Spec.Egress {
			for _, peer := range rule.To {
				if peer.IPBlock != nil && !slices.Contains(peer.IPBlock.Except, "169.254.0.0/16") {
					t.Errorf("%s lets pods ask for the credentials of their machine", p.Name)
				}
			}
		}
	}
}

// reachable tells whether the policies let a part's pods connect to a port, or others to it.
func reachable(t *testing.T, r rendered, part string, out bool, port string) bool {
	t.Helper()
	i := slices.IndexFunc(pods(r), func(p pod) bool { return p.part == part })
	if i < 0 {
		t.Fatalf("%s has no pod", part)
	}
	p, governed := pods(r)[i], false
	has := func(ports []networkingv1.NetworkPolicyPort) bool {
		return len(ports) == 0 || slices.ContainsFunc(ports, func(n networkingv1.NetworkPolicyPort) bool { return n.Port.String() == port })
	}
	for _, policy := range all[networkingv1.NetworkPolicy](r) {
		if !selects(t, &policy.Spec.PodSelector, p) {
			continue
		}
		governed = true
		for _, rule := range policy.Spec.Egress {
			if out && has(rule.Ports) {
				return true
			}
		}
		for _, rule := range policy.Spec.Ingress {
			if !out && has(rule.Ports) {
				return true
			}
		}
	}
	return !governed
}

// TestMemory: Go keeps below what the kernel kills at.
func TestMemory(t *testing.T) {
	each(t, func(t *testing.T, values map[string]any, r rendered) {
		for _, p := range pods(r) {
			c := p.spec.Containers[0]
			limit, limited := c.Resources.Limits[corev1.ResourceMemory]
			at := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "GOMEMLIMIT" })
			if !limited || values["memoryLimitPercent"] != nil {
				if at >= 0 {
					t.Errorf("%s: GOMEMLIMIT of what?", p.name)
				}
				continue
			}
			if at < 0 {
				t.Errorf("%s has a limit and no GOMEMLIMIT", p.name)
				continue
			}
			want := limit.Value() / 100 * 90
			var got int64
			if _, err := fmt.Sscan(c.Env[at].Value, &got); err != nil || got < want-1024 || got > want+1024 {
				t.Errorf("%s: GOMEMLIMIT is %s, the limit is %s", p.name, c.Env[at].Value, limit.String())
			}
			if request := c.Resources.Requests[corev1.ResourceMemory]; request.Cmp(limit) > 0 {
				t.Errorf("%s asks for more memory than it may have", p.name)
			}
		}
	})
}

// TestStopsInTime: Kubernetes waits longer than penstock drains.
func TestStopsInTime(t *testing.T) {
	each(t, func(t *testing.T, _ map[string]any, r rendered) {
		drain := regexp.MustCompile(`drain_timeout: (\d+)s`).FindStringSubmatch(named[corev1.ConfigMap](t, r, "logs-penstock").Data["penstock.yaml"])
		if drain == nil {
			t.Fatal("the configuration does not say how long to drain")
		}
		var seconds int64
		_, _ = fmt.Sscan(drain[1], &seconds)
		for _, p := range pods(r) {
			if grace := *p.spec.TerminationGracePeriodSeconds; grace < seconds+10 {
				t.Errorf("%s has %d s to stop, and drains for %d", p.name, grace, seconds)
			}
		}
	})
}

// TestConfigurationRolls: what changes the configuration, and nothing else, replaces pods.
func TestConfigurationRolls(t *testing.T) {
	typical := cases(t)["typical"]
	before := render(t, typical)
	same := render(t, with(t, typical, "stages: {fetch: {replicas: 5}}"))
	other := render(t, with(t, typical, "config: {dedupe: {window: 12h}}"))
	for _, part := range []string{"logs-penstock-fetch", "logs-penstock-deliver"} {
		sum := func(r rendered) string {
			return named[appsv1.Deployment](t, r, part).Spec.Template.Annotations["checksum/config"]
		}
		if sum(before) == "" || sum(before) != sum(same) || sum(before) == sum(other) {
			t.Errorf("%s: %q, %q with more replicas, %q with another configuration", part, sum(before), sum(same), sum(other))
		}
	}
}

// TestScaling: the triggers name the readers as penstock does.
func TestScaling(t *testing.T) {
	r := render(t, cases(t)["everything"])
	want := map[string][]string{
		"ingest": {"aws-sqs-queue"}, "fetch": {"NOTICES/fetch"}, "parse": {"RECORDS/parse"}, "dedupe": {"prometheus"},
		"route": {"UNIQUE/route"}, "deliver": {"EVENTS/deliver-siem", "EVENTS/deliver-log_lake-2"},
	}
	for _, part := range stages {
		s := named[ScaledObject](t, r, "logs-penstock-"+part)
		var got []string
		for _, trigger := range s.Spec.Triggers {
			if trigger.Type != "nats-jetstream" {
				got = append(got, trigger.Type)
				continue
			}
			m := trigger.Metadata
			got = append(got, m["stream"]+"/"+m["consumer"])
			if m["natsServerMonitoringEndpoint"] != "nats-headless.nats.svc.cluster.local:8222" || m["account"] != "PENSTOCK" || m["useHttps"] != "true" {
				t.Errorf("%s asks %v", part, m)
			}
		}
		if !slices.Equal(got, want[part]) {
			t.Errorf("%s is scaled by %v, want %v", part, got, want[part])
		}
	}
	// Dedupe is scaled by a metric that there is.
	query := named[ScaledObject](t, r, "logs-penstock-dedupe").Spec.Triggers[0].Metadata["query"]
	metric := regexp.MustCompile(`penstock_\w+`).FindString(query)
	if reference, err := os.ReadFile("../../docs/reference/metrics.md"); err != nil || metric == "" || !strings.Contains(string(reference), "`"+metric+"`") {
		t.Errorf("%s asks for a metric that is not in the reference (%v)", query, err)
	}
	// Where NATS is monitored follows from where it is.
	r = render(t, with(t, cases(t)["typical"], "stages: {parse: {autoscaling: {enabled: true}}}"))
	m := named[ScaledObject](t, r, "logs-penstock-parse").Spec.Triggers[0].Metadata
	if m["natsServerMonitoringEndpoint"] != "nats.nats.svc.cluster.local:8222" || m["account"] != "$G" {
		t.Errorf("asks %v", m)
	}
}

// TestToggles turns single things on and off: what else is there stays.
func TestToggles(t *testing.T) {
	typical := cases(t)["typical"]
	base := listing(render(t, typical))
	for set, want := range map[string][]string{
		"topology: {enabled: false}": {
			"-ConfigMap logs-penstock-topology", "-Job logs-penstock-topology", "-NetworkPolicy logs-penstock-topology", "-ServiceAccount logs-penstock-topology",
		},
		"console: {enabled: false}": {
			"-NetworkPolicy logs-penstock-console", "-PodDisruptionBudget logs-penstock-console", "-Service logs-penstock-console",
			"-ServiceAccount logs-penstock-console", "-StatefulSet logs-penstock-console",
		},
		"stages: {route: {podDisruptionBudget: {enabled: false}}}":   {"-PodDisruptionBudget logs-penstock-route"},
		"stages: {route: {serviceAccount: {create: false}}}":         {"-ServiceAccount logs-penstock-route"},
		"stages: {route: {autoscaling: {enabled: true}}}":            {"+ScaledObject logs-penstock-route"},
		"stages: {route: {autoscaling: {enabled: true, type: hpa}}}": {"+HorizontalPodAutoscaler logs-penstock-route"},
		"stages: {ingest: {ports: [{name: hec, port: 8088}]}}":       {"+Service logs-penstock-ingest"},
		"stages: {deliver: {ports: [{name: pull, port: 8090}]}}":     {"+Service logs-penstock-deliver"},
		"metrics: {serviceMonitor: {enabled: true}}":                 {"+Service logs-penstock-metrics", "+ServiceMonitor logs-penstock"},
		"metrics: {prometheusRule: {enabled: true}}":                 {"+PrometheusRule logs-penstock"},
		"metrics: {dashboard: {enabled: true}}":                      {"+ConfigMap logs-penstock-dashboard"},
		"nats: {users: {enabled: false}}":                            nil,
	} {
		t.Run(set, func(t *testing.T) {
			now := listing(render(t, with(t, typical, set)))
			var got []string
			for id := range base {
				if !now[id] {
					got = append(got, "-"+id)
				}
			}
			for id := range now {
				if !base[id] {
					got = append(got, "+"+id)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("changed %v, want %v", got, want)
			}
		})
	}
	// 0 and false are values, not "not said".
	r := render(t, with(t, typical, "stages: {fetch: {replicas: 0}}"))
	if n := *named[appsv1.Deployment](t, r, "logs-penstock-fetch").Spec.Replicas; n != 0 {
		t.Errorf("0 replicas became %d", n)
	}
}

func listing(r rendered) map[string]bool {
	found := map[string]bool{}
	for _, o := range r.objects {
		kind := fmt.Sprintf("%T", o)
		found[kind[strings.LastIndex(kind, ".")+1:]+" "+o.GetName()] = true
	}
	return found
}

// TestGolden keeps what comes out for review.
func TestGolden(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(cases(t))) {
		if name == "minimal" || name == "typical" {
			r := render(t, cases(t)[name])
			golden(t, "testdata/"+name+".golden.yaml", r.text)
			golden(t, "testdata/"+name+".notes.golden.txt", r.notes)
		}
	}
}

// TestJob: it is tried again while NATS comes up, and not for ever.
func TestJob(t *testing.T) {
	j := named[batchv1.Job](t, render(t, cases(t)["typical"]), "logs-penstock-topology")
	if *j.Spec.BackoffLimit < 5 || j.Spec.ActiveDeadlineSeconds == nil || j.Annotations["helm.sh/hook"] != "pre-install,pre-upgrade" {
		t.Errorf("backoff %d, deadline %v, hook %s", *j.Spec.BackoffLimit, j.Spec.ActiveDeadlineSeconds, j.Annotations["helm.sh/hook"])
	}
}
