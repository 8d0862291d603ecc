package security

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

// process is penstock with all that it ever says in a file: the harness keeps the end.
type process struct {
	t     testing.TB
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
}

// start starts penstock. The end of the test ends it.
func start(t testing.TB, dir, name string, env []string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(harness.Binary(t), args...), log: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Env = append(append(os.Environ(), "AWS_EC2_METADATA_DISABLED=true", "GOTRACEBACK=all"), env...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); _ = out.Close(); close(p.ended) }()
	t.Cleanup(func() {
		p.end(syscall.SIGKILL)
		if t.Failed() {
			text := p.said()
			t.Logf("--- %s ---\n%s", name, text[max(0, len(text)-4000):])
		}
	})
	return p
}

func (p *process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// end sends a signal and waits until the process is gone.
func (p *process) end(s syscall.Signal) {
	_ = p.cmd.Process.Signal(s)
	select {
	case <-p.ended:
	case <-time.After(time.Minute):
		_ = p.cmd.Process.Kill()
		<-p.ended
		p.t.Errorf("the process did not end on %s", s)
	}
}

func (p *process) said() string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(data)
}

// awaitAnswer waits until an address answers at all.
func (p *process) awaitAnswer(url string) {
	p.t.Helper()
	client := http.Client{Timeout: 5 * time.Second}
	harness.Await(p.t, 90*time.Second, url+" answers", func() bool {
		if !p.running() {
			p.t.Fatal("the process ended")
		}
		r, err := client.Get(url)
		if err != nil {
			return false
		}
		_ = r.Body.Close()
		return true
	})
}

// visitor is somebody at the console.
type visitor struct {
	t      testing.TB
	base   string
	client *http.Client
}

var csrfField = regexp.MustCompile(`name="csrf" value="([^"]+)"`)

// visit opens the console, and logs in where it asks for that.
func visit(t testing.TB, base, name, password string) *visitor {
	t.Helper()
	jar, _ := cookiejar.New(nil)
	v := &visitor{t: t, base: base, client: &http.Client{Jar: jar, Timeout: 30 * time.Second}}
	_, page := v.get("/login") //nolint:bodyclose // get has closed it
	field := csrfField.FindStringSubmatch(page)
	if field == nil {
		t.Fatalf("the login has no token: %s", page)
	}
	r, err := v.client.PostForm(base+"/login", url.Values{"name": {name}, "password": {password}, "csrf": {field[1]}})
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if r.Request.URL.Path == "/login" {
		t.Fatalf("the login is refused: %s", r.Status)
	}
	return v
}

// get returns all of a page, header and body.
func (v *visitor) get(path string) (*http.Response, string) {
	v.t.Helper()
	r, err := v.client.Get(v.base + path)
	if err != nil {
		v.t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	return r, string(body)
}

// listenTo returns what a stream of the console says until it has said enough lines.
func (v *visitor) listenTo(path string, lines int) string {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, v.base+path, nil)
	if err != nil {
		v.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	r, err := v.client.Do(req)
	if err != nil {
		v.t.Fatal(err)
	}
	defer r.Body.Close()
	var said strings.Builder
	in := bufio.NewScanner(r.Body)
	in.Buffer(nil, 4<<20)
	for n := 0; n < lines && in.Scan(); n++ {
		said.WriteString(in.Text() + "\n")
	}
	return said.String()
}

// fetch returns all that an address answers.
func fetch(t testing.TB, method, address, body string, header ...string) (status int, text string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := http.Client{Timeout: 30 * time.Second}
	r, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	data, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	var head strings.Builder
	_ = r.Header.Write(&head)
	return r.StatusCode, head.String() + string(data)
}

// readAccess is how to reach the server inside of a process.
func readAccess(t testing.TB, store string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(store, topology.AccessFile))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}
