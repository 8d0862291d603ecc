package helm

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// TestRuns: with users and Secrets as penstock topology users writes them, a real NATS server
// lets in what the chart runs: the stages wait for the streams, the Job makes them, the
// stages become ready, and nobody asks for more than its user may.
func TestRuns(t *testing.T) {
	bin := program(t)
	dir := t.TempDir()
	cmd := exec.Command(bin, "topology", "users", "--dir", dir, "--format", "kubernetes", "--namespace", namespace)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	made := secretsIn(t, filepath.Join(dir, "nats/secrets.yaml"))

	server := filepath.Join(dir, "nats-server")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", server, "./tests/harness/natsd")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	addr := freeAddr(t)
	conf := filepath.Join(dir, "nats.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "listen: %q\nmax_payload: 8MB\nmax_pending: 128MB\njetstream { store_dir: %q, max_file_store: 18GB, max_memory_store: 64MB }\ninclude \"nats/users.conf\"\n",
		addr, filepath.Join(dir, "streams")), 0o600); err != nil {
		t.Fatal(err)
	}
	nats := begin(t, nil, server, "-c", conf)
	await(t, "NATS answers", func() bool {
		nats.mustRun()
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})

	r := render(t, with(t, cases(t)["typical"], "nats: {url: 'nats://"+addr+"'}"))
	parts := map[string]pod{}
	for _, p := range pods(r) {
		parts[p.part] = p
	}
	// as is the environment and the command of a pod. Of its own it has here, as there, a
	// folder and an address for its probes.
	as := func(part string) (env, args []string, probes string) {
		dir, env := stage(t, r, parts[part], made)
		probes = freeAddr(t)
		config := filepath.Join(dir, "config/penstock.yaml")
		text, err := os.ReadFile(config)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(text, []byte("address: :8080\n")) {
			t.Fatalf("the probes of %s are asked elsewhere:\n%s", part, text)
		}
		text = bytes.Replace(text, []byte("address: :8080\n"), []byte("address: "+probes+"\n  private_address: \"\"\n"), 1)
		if err := os.WriteFile(config, text, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, arg := range parts[part].spec.Containers[0].Args {
			args = append(args, strings.Replace(arg, "/etc/penstock", dir, 1))
		}
		return env, args, probes
	}

	ready := func(s *process) bool {
		s.mustRun()
		response, err := http.Get("http://" + s.probes + parts[s.part].spec.Containers[0].ReadinessProbe.HTTPGet.Path)
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	}
	var running []*process
	t.Cleanup(func() {
		if t.Failed() {
			for _, s := range running {
				t.Logf("%s said: %s", s.part, s.log.String())
			}
		}
	})
	for _, part := range []string{"parse", "dedupe"} {
		env, args, probes := as(part)
		s := begin(t, env, bin, args...)
		s.part, s.probes = part, probes
		running = append(running, s)
	}
	for _, s := range running {
		await(t, s.part+" waits for the streams", func() bool {
			if ready(s) {
				t.Fatalf("%s is ready before there are streams", s.part)
			}
			return strings.Contains(s.log.String(), "waiting until the user admin does")
		})
	}

	env, args, _ := as("topology")
	job := exec.Command(bin, args...)
	job.Env = env
	if out, err := job.CombinedOutput(); err != nil {
		t.Fatalf("the Job: %v: %s", err, out)
	}
	for _, s := range running {
		await(t, s.part+" is ready", func() bool { return ready(s) })
	}

	// What the notes of the chart have people run in the console's pod.
	env, args, _ = as("console")
	status := exec.Command(bin, "status", "--config", args[len(args)-1])
	status.Env = env
	// It is not content, as most of the stages do not run; it sees those that do.
	if out, _ := status.CombinedOutput(); !regexp.MustCompile(`parse +1 `).Match(out) || !regexp.MustCompile(`dedupe +1 `).Match(out) {
		t.Errorf("penstock status in the pod of the console does not see who runs: %s", out)
	}

	if log := nats.log.String(); strings.Contains(log, "Violation") {
		t.Errorf("a user asks for more than it may: %s", log)
	}
	// That would be seen: the Job with the user of fetch.
	env, args, _ = as("topology")
	for i, e := range env {
		if strings.HasPrefix(e, "PENSTOCK_BUS_USER=") {
			env[i] = "PENSTOCK_BUS_USER=fetch"
		}
		if file, ok := strings.CutPrefix(e, "PENSTOCK_BUS_PASSWORD_FILE="); ok {
			if err := os.WriteFile(file, made["penstock-user-fetch"]["password"], 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	begin(t, env, bin, args...)
	await(t, "NATS tells of a violation", func() bool { return strings.Contains(nats.log.String(), "Violation") })
}

// secretsIn are the Secrets of a manifest: name, key, value.
func secretsIn(t *testing.T, path string) map[string]map[string][]byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]map[string][]byte{}
	for _, doc := range strings.Split(string(text), "---\n") {
		if !meaningful([]byte(doc)) {
			continue
		}
		var s corev1.Secret
		if err := yaml.UnmarshalStrict([]byte(doc), &s); err != nil {
			t.Fatalf("%v in %s", err, path)
		}
		if s.Kind != "Secret" || s.Namespace != namespace {
			t.Errorf("%s %s is in the namespace %q", s.Kind, s.Name, s.Namespace)
		}
		found[s.Name] = s.Data
		if s.Data == nil {
			found[s.Name] = map[string][]byte{}
		}
		for key, value := range s.StringData {
			found[s.Name][key] = []byte(value)
		}
	}
	return found
}

// process is one that runs until the test ends.
type process struct {
	t            *testing.T
	part, probes string
	log          journal
	ended        chan struct{}
	err          error
}

func begin(t *testing.T, env []string, path string, args ...string) *process {
	t.Helper()
	p := &process{t: t, ended: make(chan struct{})}
	cmd := exec.Command(path, args...)
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = &p.log, &p.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.ended:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			<-p.ended
			t.Errorf("%s %s does not stop: %s", filepath.Base(path), p.part, p.log.String())
		}
	})
	return p
}

// mustRun ends the test when the process has ended.
func (p *process) mustRun() {
	p.t.Helper()
	select {
	case <-p.ended:
		p.t.Fatalf("%s ended: %v: %s", p.part, p.err, p.log.String())
	default:
	}
}

// journal is what a process has said so far.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("a minute has passed, but not: %s", what)
		}
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}
