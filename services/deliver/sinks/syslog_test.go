package sinks

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/golden"
)

func init() { harnesses["syslog"] = syslogWorld }

func syslogWorld(t *testing.T) *world {
	f := newStreamSide(t, false, octets)
	open := func(change func(*SyslogConfig)) Sink {
		return openStream(t, f, func(c *SyslogConfig) {
			c.Timeout = 2 * time.Second
			if change != nil {
				change(c)
			}
		})
	}
	return streamWorld(f, open(nil), envelopeOf, func() Sink {
		return open(func(c *SyslogConfig) { c.TLS.CAFile = "" })
	})
}

// envelopeOf is what stands behind the header of a message.
func envelopeOf(message string) string {
	_, text, _ := strings.Cut(message, "] {")
	return "{" + text
}

// samples are events that test what a header may hold.
func samples() []*Event {
	full := event(1, `{"eventName":"ListBuckets","a":"\"]\\"}`)
	full.Type = "cloudtrail.s3"
	odd := event(2, "{\n  \"n\": 2,\r\n  \"s\": \"a  b\"\n}")
	odd.Type, odd.Source = strings.Repeat("type.", 20), "q\"u]o\\te\n\tü"
	odd.Account, odd.Region = "", "é"
	odd.Time = time.Date(2026, 11, 25, 23, 59, 59, 999_999_999, time.FixedZone("", 3600)).UnixNano()
	bare := &Event{ID: messages.NewID([]byte("3")), Type: "t", Time: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()}
	return []*Event{full, odd, bare}
}

// covers: F-23, F-24
func TestSyslogMessages(t *testing.T) {
	tests := map[string]func(*SyslogConfig){
		"rfc5424":  func(*SyslogConfig) {},
		"envelope": func(c *SyslogConfig) { c.Format, c.BOM = Envelope, true },
		"lf":       func(c *SyslogConfig) { c.Framing = LineFeed },
		"rfc3164":  func(c *SyslogConfig) { c.Protocol, c.ProcID = RFC3164, "{source}" },
		"fields": func(c *SyslogConfig) {
			c.Host, c.App, c.ProcID, c.MsgID, c.EnterpriseID = "{source}", "{type}", "{account}", "{region}", 4711
		},
		"datagrams": func(c *SyslogConfig) { c.Transport = OverUDP },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := defaultSyslog()
			cfg.Address, cfg.Transport, cfg.Host = "127.0.0.1:1", OverTCP, "penstock-1"
			change(&cfg)
			must(t, cfg.Validate())
			s, err := openSyslog(t.Context(), cfg, Deps{Destination: "d"})
			must(t, err)
			defer s.Close()
			var out []byte
			for _, e := range samples() {
				start := len(out)
				out = s.Append(out, e)
				if again := s.Append(nil, e); !bytes.Equal(again, out[start:]) {
					t.Errorf("%q the second time", again)
				}
				if cfg.Transport == OverUDP {
					out = append(out, '\n')
				}
			}
			golden.Check(t, "testdata/syslog_"+name+".want", out)
		})
	}
}

// What is not known is left out or said to be so.
func TestSyslogUnknownTime(t *testing.T) {
	cfg := defaultSyslog()
	cfg.Address, cfg.Transport = "127.0.0.1:1", OverUDP
	s, err := openSyslog(t.Context(), cfg, Deps{})
	must(t, err)
	defer s.Close()
	if got := string(s.Append(nil, &Event{})); !strings.HasPrefix(got, "<134>1 - ") || !strings.HasSuffix(got, " penstock - - [penstock@32473 id=\"00000000000000000000000000000000\"] null") {
		t.Errorf("got %q", got)
	}
	host, _ := os.Hostname()
	if got := string(s.Append(nil, &Event{})); !strings.Contains(got, " "+strings.Map(func(r rune) rune {
		if r > '~' || r <= ' ' {
			return '_'
		}
		return r
	}, host)+" ") {
		t.Errorf("no host in %q", got)
	}
	cfg.Protocol = RFC3164
	s, err = openSyslog(t.Context(), cfg, Deps{})
	must(t, err)
	defer s.Close()
	before := time.Now().UTC().Truncate(time.Second)
	stamp, err := time.Parse(time.Stamp, string(s.Append(nil, &Event{}))[5:20])
	must(t, err)
	if stamp = stamp.AddDate(before.Year(), 0, 0); stamp.Before(before) || stamp.Sub(before) > time.Minute {
		t.Errorf("time %v of an event without one, at %v", stamp, before)
	}
}

// Messages that are too large are refused alone, by every framing.
func TestSyslogTooLarge(t *testing.T) {
	for _, framing := range []Framing{OctetCounting, LineFeed} {
		t.Run(string(framing), func(t *testing.T) {
			next := octets
			if framing == LineFeed {
				next = lines
			}
			f := newStreamSide(t, true, next)
			defer f.close()
			s := openStream(t, f, func(c *SyslogConfig) { c.Framing = framing })
			defer s.Close()
			b := batchOf(s, 0, docsOf(0, 1, 500)...)
			s.most = s.size(b.Event(0)) // what just fits
			docs := append(docsOf(0, 1, 500), docsOf(1, 1, 501)...)
			docs = append(docs, docsOf(2, 1, 400)...)
			docs = append(docs, docsOf(3, 2, 600)...)
			res := s.Deliver(t.Context(), batchOf(s, 0, docs...))
			var refused []int
			for _, x := range res.Items {
				refused = append(refused, x.Index)
				if x.Verdict != Reject || fault.CodeOf(x.Err) != "deliver.stream_too_large" {
					t.Errorf("got %v: %v", x.Verdict, x.Err)
				}
			}
			if res.Verdict != Done || !slices.Equal(refused, []int{1, 3, 4}) {
				t.Errorf("got %v: %v, refused %v", res.Verdict, res.Err, refused)
			}
			res = s.Deliver(t.Context(), batchOf(s, 5, docsOf(5, 1, 600)...))
			if res.Verdict != Done || len(res.Items) != 1 {
				t.Errorf("got %+v", res)
			}
			f.await("two", func() bool { return len(f.messages) == 2 })
			// Nothing of what was refused is sent again.
			f.kick()
			f.await("both again", func() bool { return len(f.messages) == 4 })
			f.set(func() {
				if only(f.messages, 0) != 2 || only(f.messages, 2) != 2 {
					t.Errorf("got %q", f.messages)
				}
			})
		})
	}
}

// covers: F-24
func TestSyslogDatagrams(t *testing.T) {
	peer, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	defer peer.Close()
	var mu sync.Mutex
	var log bytes.Buffer
	cfg := defaultSyslog()
	cfg.Address, cfg.Transport = peer.LocalAddr().String(), OverUDP
	s, err := openSyslog(t.Context(), cfg, Deps{Destination: "udp", Log: newLog(&mu, &log)})
	must(t, err)
	defer s.Close()
	if !strings.Contains(log.String(), "datagrams may be lost") {
		t.Error("no warning")
	}
	docs := append(plain(0, 3), docsOf(3, 1, 66_000)...)
	docs = append(docs, docsOf(4, 1, 60_000)...)
	b := batchOf(s, 0, docs...)
	res := s.Deliver(t.Context(), b)
	if res.Verdict != Done || len(res.Items) != 1 || res.Items[0].Index != 3 || fault.CodeOf(res.Items[0].Err) != "deliver.stream_too_large" {
		t.Fatalf("got %+v", res)
	}
	buf := make([]byte, 70_000)
	for _, i := range []int{0, 1, 2, 4} {
		must(t, peer.SetReadDeadline(time.Now().Add(10*time.Second)))
		n, _, err := peer.ReadFrom(buf)
		must(t, err)
		if !bytes.Equal(buf[:n], b.Event(i)) {
			t.Errorf("event %d came as %.80q", i, buf[:n])
		}
	}
	// Nobody listens: the system tells so with the datagrams after the first.
	must(t, peer.Close())
	for range 100 {
		if res = s.Deliver(t.Context(), batchOf(s, 0, plain(0, 50)...)); res.Verdict != Done {
			break
		}
	}
	if res.Verdict != Retry || fault.CodeOf(res.Err) != "deliver.stream_unreachable" {
		t.Errorf("got %v: %v", res.Verdict, res.Err)
	}
}

func TestSyslogConfig(t *testing.T) {
	tests := []struct {
		key    string
		change func(*SyslogConfig)
	}{
		{"address", func(c *SyslogConfig) { c.Address = "" }},
		{"address", func(c *SyslogConfig) { c.Address = "host" }},
		{"address", func(c *SyslogConfig) { c.Address = ":6514" }},
		{"address", func(c *SyslogConfig) { c.Address = "host:0" }},
		{"address", func(c *SyslogConfig) { c.Address = "host:70000" }},
		{"host", func(c *SyslogConfig) { c.Host = "" }},
		{"host", func(c *SyslogConfig) { c.Host = "a b" }},
		{"host", func(c *SyslogConfig) { c.Host = "{other}" }},
		{"app", func(c *SyslogConfig) { c.App = strings.Repeat("a", 49) }},
		{"app", func(c *SyslogConfig) { c.App, c.Protocol = strings.Repeat("a", 33), RFC3164 }},
		{"procid", func(c *SyslogConfig) { c.ProcID = strings.Repeat("a", 129) }},
		{"msgid", func(c *SyslogConfig) { c.MsgID = "ü" }},
		{"enterprise_id", func(c *SyslogConfig) { c.EnterpriseID = 0 }},
		{"bom", func(c *SyslogConfig) { c.BOM, c.Protocol = true, RFC3164 }},
		{"batch.events", func(c *SyslogConfig) { c.Batch.Events = 0 }},
		{"max_message", func(c *SyslogConfig) { c.MaxMessage = 479 }},
		{"timeout", func(c *SyslogConfig) { c.Timeout = 0 }},
		{"unconfirmed.events", func(c *SyslogConfig) { c.Unconfirmed.Events = -1 }},
		{"unconfirmed.bytes", func(c *SyslogConfig) { c.Unconfirmed.Bytes = -1 }},
		{"unconfirmed.hold", func(c *SyslogConfig) { c.Unconfirmed.Hold = -1 }},
		{"tls.key_file", func(c *SyslogConfig) { c.TLS.CertFile = "x" }},
		{"tls", func(c *SyslogConfig) { c.Transport, c.TLS.CAFile = OverTCP, "x" }},
		{"tls", func(c *SyslogConfig) { c.Transport, c.TLS.ServerName = OverUDP, "x" }},
	}
	for _, tt := range tests {
		cfg := defaultSyslog()
		cfg.Address = "localhost:6514"
		tt.change(&cfg)
		err := cfg.Validate()
		if err == nil || !strings.Contains(err.Error(), tt.key+":") {
			t.Errorf("%s: %v", tt.key, err)
		}
		if _, err := openSyslog(t.Context(), cfg, Deps{}); err == nil {
			t.Errorf("%s: opens", tt.key)
		}
	}
	cfg := defaultSyslog()
	cfg.Address = "localhost:6514"
	must(t, cfg.Validate())
	cfg.TLS.CAFile = "absent"
	if _, err := openSyslog(t.Context(), cfg, Deps{}); fault.CodeOf(err) != "deliver.tls_setup" {
		t.Errorf("got %v", err)
	}
}

// Whatever an event holds, a reader of RFC 5424 gets it back: the frame is as long as
// it says, each field is within its limits, and the values of the structured data are
// what they were but for control characters.
func FuzzSyslogMessage(f *testing.F) {
	f.Add("type", "source", "account", "region", int64(1), `{"a":1}`, true)
	f.Add(`a"b\]c`, "\x00\n", "é", "]", int64(-1), "{\n\"a\":\"] \"}", false)
	f.Fuzz(func(t *testing.T, typ, source, account, region string, at int64, doc string, counted bool) {
		cfg := defaultSyslog()
		cfg.Address, cfg.Transport = "127.0.0.1:1", OverTCP
		cfg.Host, cfg.App, cfg.ProcID, cfg.MsgID = "{source}", "{region}", "{account}", "{type}"
		if !counted {
			cfg.Framing = LineFeed
		}
		opened, err := openSyslog(t.Context(), cfg, Deps{})
		must(t, err)
		defer opened.Close()
		e := &Event{Type: typ, Source: source, Account: account, Region: region, Time: at, Doc: []byte(doc)}
		out := opened.Append([]byte("x"), e)[1:]
		next := octets
		if !counted {
			next = lines
			if strings.ContainsAny(doc, "\r\n") {
				return // only valid JSON is put on one line
			}
		}
		r := bufio.NewReader(bytes.NewReader(out))
		m, err := next(r)
		if err != nil || r.Buffered() > 0 {
			t.Fatalf("frame %q: %v, %d bytes behind it", out, err, r.Buffered())
		}
		fields := strings.SplitN(m, " ", 7)
		for i, most := range []int{6, 27, mostHost, mostApp, mostProcID, mostMsgID} {
			if fields[i] == "" || len(fields[i]) > most || strings.ContainsFunc(fields[i], func(r rune) bool { return r <= ' ' || r > '~' }) {
				t.Fatalf("field %d is %q", i, fields[i])
			}
		}
		if at != 0 {
			stamp, err := time.Parse("2006-01-02T15:04:05.000000Z", fields[1])
			if err != nil || stamp.UnixMicro() != time.Unix(0, at).UnixMicro() {
				t.Fatalf("time %q of %d: %v", fields[1], at, err)
			}
		}
		params, rest, err := structured(fields[6])
		if err != nil {
			t.Fatalf("%q: %v", fields[6], err)
		}
		plain := func(s string) string {
			b := []byte(s)
			for i, c := range b {
				if c < ' ' || c == 0x7f {
					b[i] = ' '
				}
			}
			return string(b)
		}
		for name, want := range map[string]string{"type": typ, "source": source, "account": account, "region": region} {
			if got, ok := params[name]; got != plain(want) || ok != (want != "") {
				t.Fatalf("%s is %q, want %q", name, got, want)
			}
		}
		if doc != "" && !strings.ContainsAny(doc, "\r\n") && rest != " "+doc {
			t.Fatalf("text %q, want %q", rest, doc)
		}
	})
}

// structured reads one element of structured data as RFC 5424 has it.
func structured(s string) (params map[string]string, rest string, err error) {
	s, ok := strings.CutPrefix(s, "[penstock@32473")
	if !ok {
		return nil, "", fmt.Errorf("no element")
	}
	params = map[string]string{}
	for strings.HasPrefix(s, " ") {
		name, value, ok := strings.Cut(s[1:], `="`)
		if !ok {
			return nil, "", fmt.Errorf("no value")
		}
		var text []byte
		i := 0
		for ; i < len(value) && value[i] != '"'; i++ {
			if value[i] == ']' {
				return nil, "", fmt.Errorf("a bare bracket")
			}
			if value[i] == '\\' {
				i++
			}
			if i < len(value) {
				text = append(text, value[i])
			}
		}
		if i >= len(value) {
			return nil, "", fmt.Errorf("no end")
		}
		params[name], s = string(text), value[i+1:]
	}
	if !strings.HasPrefix(s, "]") {
		return nil, "", fmt.Errorf("no end of the element")
	}
	return params, s[1:], nil
}

func benchDocs(n int) []string {
	docs := make([]string, n)
	for i := range docs {
		docs[i] = `{"eventVersion":"1.08","eventName":"ListBuckets","awsRegion":"eu-west-1","sourceIPAddress":"192.0.2.7","n":` + strconv.Itoa(i) + `,"pad":"` + strings.Repeat("x", 180) + `"}`
	}
	return docs
}

func BenchmarkSyslogAppend(b *testing.B) {
	cfg := defaultSyslog()
	cfg.Address, cfg.Transport = "127.0.0.1:1", OverTCP
	s, err := openSyslog(b.Context(), cfg, Deps{})
	must(b, err)
	defer s.Close()
	benchmarkAppend(b, s)
}

func benchmarkAppend(b *testing.B, s Sink) {
	b.Helper()
	e := event(1, benchDocs(1)[0])
	var buf []byte
	b.ReportAllocs()
	b.SetBytes(int64(len(s.Append(nil, e))))
	for b.Loop() {
		buf = s.Append(buf[:0], e)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// benchmarkDeliver encodes and sends batches over TLS to a receiver in this process
// that reads and counts.
func benchmarkDeliver(b *testing.B, open func(f *streamSide) Sink, next func(r *bufio.Reader) (string, error)) {
	b.Helper()
	f := newStreamSide(b, false, next)
	defer f.close()
	s := open(f)
	defer s.Close()
	docs := benchDocs(5000)
	events := make([]*Event, len(docs))
	for i := range docs {
		events[i] = event(i, docs[i])
	}
	var data []byte
	var items []Item
	encode := func() Batch {
		data, items = data[:0], items[:0]
		for _, e := range events {
			start := len(data)
			data = s.Append(data, e)
			items = append(items, Item{ID: e.ID, Start: start, End: len(data)})
		}
		return NewBatch(data, items)
	}
	if res := s.Deliver(b.Context(), encode()); res.Verdict != Done {
		b.Fatalf("got %v: %v", res.Verdict, res.Err)
	}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if res := s.Deliver(b.Context(), encode()); res.Verdict != Done {
			b.Fatalf("got %v: %v", res.Verdict, res.Err)
		}
	}
	b.ReportMetric(float64(b.N*len(events))/b.Elapsed().Seconds(), "events/s")
}

// discard reads what is there and makes no messages.
func discard(r *bufio.Reader) (string, error) {
	_, err := r.WriteTo(nullWriter{})
	if err == nil {
		err = net.ErrClosed
	}
	return "", err
}

type nullWriter struct{}

func (nullWriter) Write(p []byte) (int, error) { return len(p), nil }

func BenchmarkSyslog(b *testing.B) {
	benchmarkDeliver(b, func(f *streamSide) Sink {
		return openStream(b, f, func(c *SyslogConfig) { c.Format, c.Batch.Bytes = Document, 4*config.MiB })
	}, discard)
}
