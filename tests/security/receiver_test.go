package security

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/tests/harness"
)

// startReceiver is a pipeline behind an HTTP receiver with small bounds.
func startReceiver(t *testing.T) (w *harness.World, p *harness.Process, address string) {
	t.Helper()
	w = harness.NewWorld(t, nil)
	address = harness.FreeAddr(t)
	w.Source = fmt.Sprintf(`  - name: push
    type: http
    address: %q
    auth: none
    endpoints: [{path: /in, kind: json, format: json}, {path: /form, kind: form, format: json}, {path: /hec, kind: splunk_hec}]
    limits: {max_body: 1 MiB, max_decoded: 8 MiB, max_rows: 10000, max_parts: 20, connections: 64, in_flight: 16 MiB, requests: 32}
    timeouts: {header: 2s, read: 10s, stall: 2s, idle: 3s}
`, address)
	return w, w.RunAll(), address
}

// peak is the largest resident size of a process so far, in bytes.
func peak(t testing.TB, pid int) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Skipf("there is no /proc to read the memory of a process from: %v", err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("the status of the process tells no peak")
	return 0
}

// say sends bytes as they are and returns the statuses that come back until the far side
// closes the connection.
func sayRaw(t testing.TB, address, text string) (statuses []int) {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(40 * time.Second))
	go func() { _, _ = io.WriteString(c, text) }()
	in := bufio.NewReader(c)
	for {
		r, err := http.ReadResponse(in, nil) //nolint:bodyclose // it ends with its connection
		if err != nil {
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				t.Errorf("the connection is held open after %.60q", text)
			}
			return statuses
		}
		_, _ = io.Copy(io.Discard, r.Body)
		statuses = append(statuses, r.StatusCode)
	}
}

// The receiver takes no request apart in another way than what stands before it, holds no
// more than its bounds, and serves those who behave while others do not.
//
// covers: design section 8
func TestReceiverWithstandsSenders(t *testing.T) {
	takesLong(t)
	w, p, address := startReceiver(t)
	before := peak(t, p.PID())
	behave := func(what string) {
		t.Helper()
		if status, text := fetch(t, http.MethodPost, "http://"+address+"/in", `{"message":"`+what+`"}`); status != http.StatusAccepted {
			t.Errorf("after %s the answer to others is %d: %.200s", what, status, text)
		}
	}
	behave("nothing")

	const smuggled = "POST /in HTTP/1.1\r\nHost: a\r\nContent-Length: 24\r\n\r\n{\"message\":\"smuggled!!\"}"
	for name, request := range map[string]string{
		"length and chunks":     "POST /in HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n" + smuggled,
		"two lengths":           "POST /in HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 60\r\n\r\n{}" + smuggled,
		"length with plus":      "POST /in HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\n{}" + smuggled,
		"chunked twice":         "POST /in HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + smuggled,
		"chunked but not":       "POST /in HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + smuggled,
		"space before colon":    "POST /in HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + smuggled,
		"folded":                "POST /in HTTP/1.1\r\nHost: a\r\nX: a\r\nTransfer-Encoding:\r\n chunked, x\r\n\r\n0\r\n\r\n" + smuggled,
		"chunk length too long": "POST /in HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n11111111111111111\r\n" + smuggled,
		"negative chunk":        "POST /in HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n" + smuggled,
		"two hosts":             "POST /in HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 2\r\n\r\n{}" + smuggled,
		"NUL in a header":       "POST /in HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\n{}" + smuggled,
		"HTTP/0.9":              "POST /in\r\n\r\n" + smuggled,
		"huge header":           "POST /in HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
		"many headers":          "POST /in HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", 100_000) + "\r\n",
		"long path":             "POST /in?" + strings.Repeat("a=b&", 1<<18) + " HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		for i, status := range sayRaw(t, address, request) {
			if i > 0 || status < 400 && name != "length and chunks" {
				t.Errorf("%s: answer %d is %d", name, i+1, status)
			}
		}
	}
	behave("smuggling")

	// Bodies that are or become too much.
	zeros := func(n int) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = io.CopyN(z, zeroReader{}, int64(n))
		_ = z.Close()
		return b.Bytes()
	}
	chunks := "POST /in HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("8000\r\n"+strings.Repeat(" ", 0x8000)+"\r\n", 100) + "0\r\n\r\n"
	if got := sayRaw(t, address, chunks); len(got) != 1 || got[0] != http.StatusRequestEntityTooLarge {
		t.Errorf("3 MiB in chunks where 1 MiB is taken: %v", got)
	}
	for _, body := range []struct {
		name, encoding, kind, path, text string
		most                             int
	}{
		{"a gzip bomb", "gzip", "application/json", "/in", string(zeros(512 << 20)), 499},
		{"gzip in gzip", "gzip", "application/json", "/in", string(gzipped(zeros(64 << 20))), 499},
		{"gzip twice in the header", "gzip, gzip", "application/json", "/in", string(gzipped(gzipped([]byte("{}")))), 499},
		{"a bomb for the collector", "gzip", "application/json", "/hec/services/collector", string(zeros(512 << 20)), 499},
		{"deep JSON", "", "application/json", "/in", strings.Repeat("[", 1_000_000), 499},
		{"deep objects", "", "application/json", "/in", strings.Repeat(`{"a":`, 150_000) + "1" + strings.Repeat("}", 150_000), 499},
		{"a huge number", "", "application/json", "/in", `{"a":` + strings.Repeat("9", 900_000) + `}`, 499},
		{"a huge exponent", "", "application/json", "/in", `{"a":1e` + strings.Repeat("9", 1000) + `,"message":"x"}`, 499},
		{"a huge key", "", "application/json", "/in", `{"` + strings.Repeat("k", 900_000) + `":1}`, 499},
		{"many records", "", "application/json", "/in", strings.Repeat("{}\n", 300_000), 499},
		{"invalid UTF-8", "", "application/json", "/in", "{\"message\":\"\xff\xfe\xc0\x80\"}", 499},
		{"many parts", "", "multipart/form-data; boundary=b", "/form", strings.Repeat("--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n{}\r\n", 5000) + "--b--\r\n", 499},
		{"a form without end", "", "multipart/form-data; boundary=b", "/form", "--b\r\nContent-Disposition: form-data; name=\"a\"; filename=\"../../etc/passwd\"\r\n\r\n" + strings.Repeat("x", 900_000), 499},
		{"a long boundary", "", "multipart/form-data; boundary=" + strings.Repeat("b", 5000), "/form", "--b", 499},
	} {
		header := []string{"Content-Type", body.kind}
		if body.encoding != "" {
			header = append(header, "Content-Encoding", body.encoding)
		}
		if status, text := fetch(t, http.MethodPost, "http://"+address+body.path, body.text, header...); status > body.most {
			t.Errorf("%s is answered with %d: %.200s", body.name, status, text)
		}
	}
	behave("bombs")

	// Those who send a header, or a body, byte by byte or never, and many of them.
	var wg sync.WaitGroup
	for i := range 300 {
		c, err := net.DialTimeout("tcp", address, 20*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer c.Close()
			text := "POST /in HTTP/1.1\r\nHost: a\r\n"
			if i%2 == 0 {
				text += "Content-Length: 1000\r\n\r\n{"
			}
			_ = c.SetDeadline(time.Now().Add(90 * time.Second))
			_, _ = io.WriteString(c, text)
			if _, err := io.Copy(io.Discard, c); err != nil {
				if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
					t.Errorf("connection %d was held open", i)
				}
			}
		})
	}
	behave("slow senders")
	wg.Wait()
	behave("connections that ended")

	// 16 MiB in hand, and the same once in each of the stages behind, on top of what the
	// process had before.
	bound := before + 6*16<<20
	if most := peak(t, p.PID()); most > bound {
		t.Errorf("the process took %d MiB, %d before; the bound is %d", most>>20, before>>20, bound>>20)
	} else {
		t.Logf("the process took %d MiB at most, %d before, bound %d", most>>20, before>>20, bound>>20)
	}
	if !p.Running() {
		t.Fatal("the process ended")
	}
	out, _, _ := harness.Run(t, nil, "tail", "--no-follow", "--json", "--rate", "0", "-n", "1000", "--text", "smuggled", "--store", w.Dir+"/store")
	if strings.Contains(out, "smuggled!!") {
		t.Error("a smuggled request was taken")
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func gzipped(data []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(data)
	_ = z.Close()
	return b.Bytes()
}
