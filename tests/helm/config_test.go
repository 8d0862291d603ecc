package helm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// penstock builds the program once.
var penstock = sync.OnceValues(func() (string, error) {
	if at := os.Getenv("PENSTOCK_BINARY"); at != "" {
		return filepath.Abs(at)
	}
	dir, err := os.MkdirTemp("", "penstock-helm-")
	if err != nil {
		return "", err
	}
	built = dir
	build := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(dir, "penstock"), "./services/penstock")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return filepath.Join(dir, "penstock"), nil
})

// built is the folder to delete in the end.
var built string

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(built)
	}
	os.Exit(code)
}

func program(t *testing.T) string {
	t.Helper()
	at, err := penstock()
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// stage lays out what a pod would see below /etc/penstock in a folder, and returns it with
// the environment of the pod. Secrets that are not made have a text of their own.
func stage(t *testing.T, r rendered, p pod, made map[string]map[string][]byte) (dir string, env []string) {
	t.Helper()
	dir = t.TempDir()
	here := func(path string) string { return strings.Replace(path, "/etc/penstock", dir, 1) }
	for _, m := range p.spec.Containers[0].VolumeMounts {
		if !strings.HasPrefix(m.MountPath, "/etc/penstock/") {
			continue
		}
		at := slices.IndexFunc(p.spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		v := p.spec.Volumes[at]
		if err := os.MkdirAll(here(m.MountPath), 0o755); err != nil {
			t.Fatal(err)
		}
		write := func(path, text string) {
			if err := os.WriteFile(filepath.Join(here(m.MountPath), path), []byte(strings.ReplaceAll(text, "/etc/penstock", dir)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		switch {
		case v.Secret != nil:
			for _, item := range v.Secret.Items {
				text := "secret-" + v.Secret.SecretName + "-" + item.Key
				if secret := made[v.Secret.SecretName]; secret != nil {
					text = string(secret[item.Key]) // empty where it has no such key
				}
				write(item.Path, text)
			}
		case v.ConfigMap != nil:
			for _, c := range all[corev1.ConfigMap](r) {
				if c.Name == v.ConfigMap.Name {
					for _, item := range v.ConfigMap.Items {
						write(item.Path, c.Data[item.Key])
					}
				}
			}
		}
	}
	env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	for _, e := range p.spec.Containers[0].Env {
		value := e.Value
		if e.ValueFrom != nil {
			value = "secret-" + e.ValueFrom.SecretKeyRef.Name
			if e.Name == "OPS_HASH" { // has to have the form of one
				value = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHRzYWx0c2FsdA$c3VtIG9mIG5vdGhpbmcgYXQgYWxsIGJ1dCAzMiBiLi4"
			}
		}
		env = append(env, e.Name+"="+here(value))
	}
	return dir, env
}

// TestConfigurations: the real program takes the configuration of each pod, with the files
// and variables that this pod has, and no others.
func TestConfigurations(t *testing.T) {
	bin := program(t)
	each(t, func(t *testing.T, _ map[string]any, r rendered) {
		for _, p := range pods(r) {
			dir, env := stage(t, r, p, nil)
			file := filepath.Join(dir, "config/penstock.yaml")
			cmd := exec.Command(bin, "config", "check", file)
			cmd.Env = env
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", p.name, err, out)
			}
		}
	})
}

// TestBadConfiguration: the program does look at it.
func TestBadConfiguration(t *testing.T) {
	r := render(t, with(t, cases(t)["typical"], "config: {dedupe: {window: soon}}"))
	dir, env := stage(t, r, pods(r)[0], nil)
	cmd := exec.Command(program(t), "config", "check", filepath.Join(dir, "config/penstock.yaml"))
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "dedupe.window") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestNumbersStayWhole: Helm reads numbers as floating point, in which large ones turn into
// 5e+07 if nobody takes care.
func TestNumbersStayWhole(t *testing.T) {
	r := render(t, cases(t)["everything"])
	text := named[corev1.ConfigMap](t, r, "logs-penstock").Data["penstock.yaml"]
	if !strings.Contains(text, "max_ids: 50000000") {
		t.Errorf("max_ids is gone or odd:\n%s", text)
	}
}

// TestReaders asks a penstock that runs for its readers: those that the scalers of the chart
// ask NATS for are among them.
func TestReaders(t *testing.T) {
	bin := program(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "penstock.yaml")
	if err := os.WriteFile(config, []byte(fmt.Sprintf(`
bus: {store: %[1]s/data, disk: 64 MiB}
sources: [{name: in, type: http, address: "127.0.0.1:0", auth: none, endpoints: [{path: /in, kind: json}]}]
destinations: [{name: siem, type: file, path: %[1]s/a.ndjson}, {name: log_lake-2, type: file, path: %[1]s/b.ndjson}]
telemetry: {address: "", private_address: ""}
`, dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	run := exec.CommandContext(ctx, bin, "run", "--config", config)
	var log bytes.Buffer
	run.Stderr = &log
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- run.Wait() }()
	defer func() {
		_ = run.Process.Signal(os.Interrupt)
		if err := <-ended; err != nil {
			t.Errorf("penstock ended with %v:\n%s", err, log.String())
		}
	}()

	missing := func() []string {
		out, err := exec.CommandContext(ctx, bin, "topology", "show", "--json", "--store", filepath.Join(dir, "data")).Output()
		if err != nil {
			return []string{err.Error()}
		}
		var streams []struct {
			Stream    string
			Consumers []struct{ Consumer string }
		}
		if err := json.Unmarshal(out, &streams); err != nil {
			t.Fatal(err)
		}
		there := map[string]bool{}
		for _, s := range streams {
			for _, c := range s.Consumers {
				there[s.Stream+"/"+c.Consumer] = true
			}
		}
		var absent []string
		for _, s := range all[ScaledObject](render(t, cases(t)["everything"])) {
			for _, trigger := range s.Spec.Triggers {
				if id := trigger.Metadata["stream"] + "/" + trigger.Metadata["consumer"]; trigger.Type == "nats-jetstream" && !there[id] {
					absent = append(absent, id)
				}
			}
		}
		return absent
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		absent := missing()
		if len(absent) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("KEDA would ask for readers that are not there: %v", absent)
		}
	}
}
