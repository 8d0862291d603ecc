package sinks

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/config"
)

// startReceiver runs a real receiver until stop is called, and waits until it listens.
func startReceiver(t *testing.T, address, name string, args ...string) (stop func()) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), receiver(t, name), args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	must(t, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	t.Cleanup(stop)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err == nil {
			_ = conn.Close()
			return stop
		}
		select {
		case <-tick.C:
		case <-ended:
			t.Fatalf("%s ended: %s", name, said.String())
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}

// A cluster that throttles a third of the events, has a tenth already and refuses
// another: all are settled, and only throttled ones are sent again.
//
// covers: F-26, peers pain 20
func TestOpenSearchMockES(t *testing.T) {
	receiver(t, "mock-es")
	folder, address := t.TempDir(), freeAddress(t)
	cert, key := filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")
	serverCertificate(t, cert, key)
	startReceiver(t, address, "mock-es", "-addr", address, "-certfile", cert, "-keyfile", key,
		"-toomany", "30", "-nonindex", "10", "-dup", "10", "-history", "100")
	cfg := defaultOpenSearch()
	cfg.URLs, cfg.TLS.CAFile, cfg.Gzip = []string{"https://" + address}, cert, false
	s := openBulk(t, cfg)
	b := batchOf(s, 0, plain(0, 1000)...)
	verdicts := map[Verdict]int{}
	settled := map[messages.ID]int{}
	before := valueOf(t, bulkRepeats.WithLabelValues(s.name))
	settle(t, s, b.data, b.items, 50, func(id messages.ID, v Verdict) { verdicts[v]++; settled[id]++ })
	if len(settled) != 1000 || verdicts[Done]+verdicts[Reject] != 1000 || verdicts[Reject] < 50 || verdicts[Reject] > 300 {
		t.Errorf("verdicts %v on %d events", verdicts, len(settled))
	}
	if n := valueOf(t, bulkRepeats.WithLabelValues(s.name)) - before; n < 50 || n > 300 {
		t.Errorf("%v repeats", n)
	}
	s.Close()
}

func TestOpenSearchMockESTooLarge(t *testing.T) {
	receiver(t, "mock-es")
	address := freeAddress(t)
	startReceiver(t, address, "mock-es", "-addr", address, "-toolarge", "100")
	cfg := defaultOpenSearch()
	cfg.URLs = []string{"http://" + address}
	s := openBulk(t, cfg)
	if res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 3)...)); res.Verdict != TooLarge {
		t.Errorf("%v: %v", res.Verdict, res.Err)
	}
	s.Close()
}

// What VictoriaLogs has taken can be found again.
//
// covers: F-26
func TestOpenSearchVictoriaLogs(t *testing.T) {
	receiver(t, "victoria-logs")
	address := freeAddress(t)
	startReceiver(t, address, "victoria-logs", "-httpListenAddr="+address, "-storageDataPath="+filepath.Join(t.TempDir(), "data"), "-loggerLevel=ERROR")
	cfg := defaultOpenSearch()
	cfg.URLs = []string{"http://" + address + "/insert/elasticsearch"}
	cfg.Headers = map[string]config.Secret{"VL-Msg-Field": config.NewSecret("message"), "VL-Time-Field": config.NewSecret("@timestamp")}
	s := openBulk(t, cfg)
	at := time.Now().Add(-time.Minute).Truncate(time.Millisecond)
	var data []byte
	var items []Item
	for i, doc := range plain(0, 500) {
		e := event(i, doc)
		e.Time = at.UnixNano()
		start := len(data)
		data = s.Append(data, e)
		items = append(items, Item{ID: e.ID, Start: start, End: len(data)})
	}
	mustDeliver(t, s, NewBatch(data, items))
	s.Close()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	found := map[string]string{}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for len(found) < 500 { // it shows new ones after a moment
		answer, err := client.PostForm("http://"+address+"/select/logsql/query", url.Values{"query": {"*"}})
		must(t, err)
		text, err := io.ReadAll(answer.Body)
		must(t, err)
		_ = answer.Body.Close()
		for line := range bytes.Lines(text) {
			var e map[string]string
			must(t, json.Unmarshal(line, &e))
			found[e["event.id"]] = e["_time"] + " " + e["event.dataset"] + " " + e["cloud.account.id"] + " " + e["cloud.region"] + " " + e["penstock.source"] + " " + e["_msg"]
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
	for i, doc := range plain(0, 500) {
		want := at.UTC().Format(time.RFC3339Nano) + " a.b 123456789012 eu-west-1 src " + doc
		if got := found[messages.NewID(fmt.Append(nil, i)).String()]; got != want {
			t.Fatalf("event %d: %q, want %q", i, got, want)
		}
	}
	if strings.Contains(fmt.Sprint(found), "unknown") {
		t.Error("something is not known")
	}
}
