package sinks

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/services/internal/golden"
	"github.com/penstock/penstock/services/internal/tag"
)

func init() { harnesses["devo"] = devoWorld }

// newLog writes to out, which may be read while nothing is logged.
func newLog(mu *sync.Mutex, out *bytes.Buffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(writer(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return out.Write(p)
	}), nil))
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func openDevoTo(t testing.TB, f *streamSide, change func(*DevoConfig)) Sink {
	t.Helper()
	cfg := defaultDevo()
	cfg.Address, cfg.TLS, cfg.Format = f.address, f.trust.client(), Envelope
	if change != nil {
		change(&cfg)
	}
	must(t, cfg.Validate())
	s, err := openDevo(context.Background(), cfg, Deps{Destination: "devo"})
	must(t, err)
	return s
}

func devoWorld(t *testing.T) *world {
	f := newStreamSide(t, false, lines)
	open := func(change func(*DevoConfig)) Sink {
		return openDevoTo(t, f, func(c *DevoConfig) {
			c.Timeout = 2 * time.Second
			if change != nil {
				change(c)
			}
		})
	}
	return streamWorld(f, open(nil), messageOf, func() Sink {
		return open(func(c *DevoConfig) { c.TLS.CAFile = "" })
	})
}

// messageOf is what stands behind the tag of a line.
func messageOf(line string) string {
	_, text, _ := strings.Cut(line, ": ")
	return text
}

// covers: F-22, DEV-26, DEV-128
func TestDevoLines(t *testing.T) {
	cfg := defaultDevo()
	cfg.Address, cfg.Relay, cfg.Transport, cfg.Host = "127.0.0.1:1", true, DevoTransport(OverTCP), "penstock-1"
	asked := map[string]int{}
	open := func(cfg DevoConfig) Sink {
		s, err := openDevo(t.Context(), cfg, Deps{Destination: "devo", Tags: func(source string) *tag.Resolver {
			asked[source]++
			if source == "gone" {
				return nil
			}
			return tag.NewResolver(tag.Config{Environment: "prod-1"}, source)
		}})
		must(t, err)
		return s
	}
	s := open(cfg)
	defer s.Close()
	trail := event(1, `{"eventName":"ListBuckets"}`)
	trail.Type, trail.Source, trail.Region = "cloud.aws.cloudtrail.s3", "trail", "us-east-1"
	pretty := event(2, "{\n  \"n\": 2,\r\n  \"s\": \"a  b\"\n}")
	pretty.Type, pretty.Source, pretty.Account, pretty.Region = "a b..c", "gone", "", "é"
	var out []byte
	for _, e := range []*Event{trail, pretty, trail} {
		out = s.Append(out, e)
	}
	cfg.Format, cfg.Facility, cfg.Severity, cfg.Host = Envelope, "local7", "err", "{source}"
	other := open(cfg)
	defer other.Close()
	out = other.Append(out, trail)
	golden.Check(t, "testdata/devo_lines.want", out)
	if asked["trail"] != 2 || asked["gone"] != 1 {
		t.Errorf("asked for resolvers %v times", asked)
	}
}

// Without anybody to ask, events are tagged as those of a source that says nothing.
func TestDevoWithoutTags(t *testing.T) {
	cfg := defaultDevo()
	cfg.Address, cfg.Relay, cfg.Transport = "127.0.0.1:1", true, DevoTransport(OverTCP)
	s, err := openDevo(t.Context(), cfg, Deps{})
	must(t, err)
	defer s.Close()
	e := event(1, `{}`)
	if got := string(s.Append(nil, e)); !strings.HasPrefix(got, "<14>Jan  5 07:44:54 ") || !strings.HasSuffix(got, " a.b.123456789012.eu-west-1.1: {}\n") {
		t.Errorf("got %q", got)
	}
}

// What a route has written as OCSF has another version of the format in its tag.
// covers: F-22
func TestDevoOCSF(t *testing.T) {
	cfg := defaultDevo()
	cfg.Address, cfg.Relay, cfg.Transport = "127.0.0.1:1", true, DevoTransport(OverTCP)
	s, err := openDevo(t.Context(), cfg, Deps{Tags: func(source string) *tag.Resolver {
		return tag.NewResolver(tag.Config{Tag: "my.{event_type}.{format_version}"}, source)
	}})
	must(t, err)
	defer s.Close()
	for format, want := range map[string]string{"ocsf": " my.iam.ocsf: {}\n", "cloudtrail": " my.iam.1: {}\n", "": " my.iam.1: {}\n"} {
		e := event(1, `{}`)
		e.Type, e.Format = "my.iam", format
		if got := string(s.Append(nil, e)); !strings.HasSuffix(got, want) {
			t.Errorf("format %q: got %q, want %q behind the host", format, got, want)
		}
	}
}

// Each batch is one gzip member; what is sent again is, too.
// covers: DEV-141, F-22
func TestDevoGzip(t *testing.T) {
	f := newStreamSide(t, false, unzipped())
	defer f.close()
	s := openDevoTo(t, f, func(c *DevoConfig) { c.Gzip = true })
	defer s.Close()
	first := batchOf(s, 0, plain(0, 300)...)
	mustDeliver(t, s, first)
	mustDeliver(t, s, batchOf(s, 300, plain(300, 300)...))
	f.await("all", func() bool { return len(f.messages) == 600 })
	f.set(func() {
		if got := strings.Join(f.messages[:300], "\n") + "\n"; got != string(first.Bytes()) {
			t.Error("the lines differ")
		}
	})
	f.kick()
	f.await("all again", func() bool { return len(f.messages) == 1200 })
}

// covers: DEV-142
func TestDevoRelay(t *testing.T) {
	f := newStreamSide(t, true, lines)
	defer f.close()
	s := openDevoTo(t, f, func(c *DevoConfig) { c.Relay, c.Transport, c.TLS = true, DevoTransport(OverTCP), TLSConfig{} })
	defer s.Close()
	mustDeliver(t, s, batchOf(s, 0, plain(0, 3)...))
	f.await("all", func() bool { return len(f.messages) == 3 })
}

// Connections are logged, without what is secret.
// covers: DEV-129
func TestStreamLog(t *testing.T) {
	f := newStreamSide(t, false, lines)
	defer f.close()
	var mu sync.Mutex
	var out bytes.Buffer
	cfg := defaultDevo()
	cfg.Address, cfg.TLS = f.address, f.trust.client()
	s, err := openDevo(t.Context(), cfg, Deps{Destination: "devo", Log: newLog(&mu, &out)})
	must(t, err)
	mustDeliver(t, s, batchOf(s, 0, plain(0, 3)...))
	f.await("all", func() bool { return len(f.messages) == 3 })
	f.kick()
	f.await("them again", func() bool { return len(f.messages) >= 6 })
	must(t, s.Close())
	mu.Lock()
	defer mu.Unlock()
	for _, want := range []string{`msg="connection opened" address=` + f.address, `tls="TLS 1.3"`, `msg="connection ended; its last events are sent again"`, "events=3"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), secretPayload) {
		t.Error("the log shows payload")
	}
}

func TestDevoConfig(t *testing.T) {
	tests := []struct {
		key    string
		change func(*DevoConfig)
	}{
		{"address", func(c *DevoConfig) { c.Address = "collector-eu.devo.io" }},
		{"transport", func(c *DevoConfig) { c.Transport, c.TLS = DevoTransport(OverTCP), TLSConfig{} }},
		{"tls.cert_file", func(c *DevoConfig) { c.TLS = TLSConfig{} }},
		{"tls.key_file", func(c *DevoConfig) { c.TLS.KeyFile = "" }},
		{"tls", func(c *DevoConfig) { c.Relay, c.Transport = true, DevoTransport(OverTCP) }},
		{"host", func(c *DevoConfig) { c.Host = "a b" }},
		{"batch.bytes", func(c *DevoConfig) { c.Batch.Bytes = 0 }},
		{"max_message", func(c *DevoConfig) { c.MaxMessage = 1 }},
		{"timeout", func(c *DevoConfig) { c.Timeout = 0 }},
		{"unconfirmed.hold", func(c *DevoConfig) { c.Unconfirmed.Hold = 2 * time.Hour }},
	}
	for _, tt := range tests {
		cfg := defaultDevo()
		cfg.Address, cfg.TLS.CertFile, cfg.TLS.KeyFile = "collector-eu.devo.io:443", "x", "y"
		must(t, cfg.Validate())
		tt.change(&cfg)
		err := cfg.Validate()
		if err == nil || !strings.Contains(err.Error(), tt.key+":") {
			t.Errorf("%s: %v", tt.key, err)
		}
		if _, err := openDevo(t.Context(), cfg, Deps{}); err == nil {
			t.Errorf("%s: opens", tt.key)
		}
	}
	relay := defaultDevo()
	relay.Address, relay.Relay = "relay.example.com:13000", true
	must(t, relay.Validate()) // with TLS and without a client certificate
}

func BenchmarkDevoAppend(b *testing.B) {
	cfg := defaultDevo()
	cfg.Address, cfg.Relay, cfg.Transport = "127.0.0.1:1", true, DevoTransport(OverTCP)
	s, err := openDevo(b.Context(), cfg, Deps{})
	must(b, err)
	defer s.Close()
	benchmarkAppend(b, s)
}

func BenchmarkDevo(b *testing.B) {
	for _, zipped := range []bool{false, true} {
		b.Run(map[bool]string{false: "plain", true: "gzip"}[zipped], func(b *testing.B) {
			benchmarkDeliver(b, func(f *streamSide) Sink {
				return openDevoTo(b, f, func(c *DevoConfig) { c.Format, c.Gzip = Document, zipped })
			}, discard)
		})
	}
}
