package sinks

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// syslogd is a real daemon, which may be killed and started again.
type syslogd struct {
	t       *testing.T
	folder  string
	address string
	trust   *authority
	// arguments writes the configuration for one run, whose output goes to the given
	// files, and returns the command.
	arguments func(raw, parsed string) []string
	runs      int
	cmd       *exec.Cmd
	said      bytes.Buffer
}

// rsyslogd writes each message as it came, whatever the framing.
func rsyslogd(t *testing.T) *syslogd {
	d := newSyslogd(t, receiver(t, "rsyslogd"))
	path := receiver(t, "rsyslogd")
	d.arguments = func(raw, _ string) []string {
		_, port, _ := net.SplitHostPort(d.address)
		config := fmt.Sprintf(`
global(workDirectory=%[1]q maxMessageSize="256k" defaultNetstreamDriver="gtls" defaultNetstreamDriverCAFile="%[2]s/ca.pem"
  defaultNetstreamDriverCertFile="%[2]s/server.pem" defaultNetstreamDriverKeyFile="%[2]s/server.key")
main_queue(queue.size="10000")
module(load="imtcp" streamdriver.name="gtls" streamdriver.mode="1" streamdriver.authmode="x509/certvalid")
template(name="raw" type="string" string="%%rawmsg%%\n")
ruleset(name="in"){ action(type="omfile" file=%[3]q template="raw") }
input(type="imtcp" port=%[4]q address="127.0.0.1" ruleset="in")
`, d.folder, d.trust.folder, raw, port)
		file := filepath.Join(d.folder, "rsyslog.conf")
		must(t, os.WriteFile(file, []byte(config), 0o600))
		return []string{path, "-n", "-f", file, "-i", filepath.Join(d.folder, "pid")}
	}
	return d
}

// syslogNG writes each message as it came and, where it is RFC 5424, what it has made
// of it. Its framing is fixed.
func syslogNG(t *testing.T, framing Framing) *syslogd {
	path := receiver(t, "syslog-ng")
	d := newSyslogd(t, path)
	d.arguments = func(raw, parsed string) []string {
		host, port, _ := net.SplitHostPort(d.address)
		source, text := `syslog(flags(store-raw-message) transport("tls")`, "$RAWMSG"
		if framing == LineFeed {
			source, text = `network(flags(no-parse) transport("tls")`, "$MSG"
		}
		config := fmt.Sprintf(`@version: 3.35
options { log-msg-size(262144); keep-hostname(yes); stats-freq(0); };
source s { %[1]s ip(%[2]q) port(%[3]s) max-connections(100) tls(key-file("%[4]s/server.key")
  cert-file("%[4]s/server.pem") ca-file("%[4]s/ca.pem") peer-verify(required-trusted))); };
destination raw { file(%[5]q template("%[6]s\n")); };
destination parsed { file(%[7]q template("$(format-json --scope rfc5424 --scope nv-pairs)\n")); };
log { source(s); destination(raw); destination(parsed); };
`, source, host, port, d.trust.folder, raw, text, parsed)
		file := filepath.Join(d.folder, "syslog-ng.conf")
		must(t, os.WriteFile(file, []byte(config), 0o600))
		at := func(name string) string { return filepath.Join(d.folder, name) }
		return []string{path, "-F", "-f", file, "--no-caps", "-R", at("persist"), "-c", at("ctl"), "-p", at("pid")}
	}
	return d
}

func newSyslogd(t *testing.T, path string) *syslogd {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	// The control socket of syslog-ng needs a short path.
	folder, err := os.MkdirTemp("", "syslogd") //nolint:usetesting // see above
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(folder) })
	d := &syslogd{t: t, folder: folder, address: l.Addr().String(), trust: newAuthority(t)}
	d.trust.issue(t, "server")
	d.trust.issue(t, "client")
	t.Logf("%s at %s", path, d.address)
	return d
}

// start runs the daemon and waits until it listens.
func (d *syslogd) start() {
	d.t.Helper()
	args := d.arguments(filepath.Join(d.folder, fmt.Sprintf("raw-%d.log", d.runs)), filepath.Join(d.folder, fmt.Sprintf("parsed-%d.log", d.runs)))
	d.runs++
	d.cmd = exec.Command(args[0], args[1:]...)
	d.cmd.Stdout, d.cmd.Stderr = &d.said, &d.said
	must(d.t, d.cmd.Start())
	eventually(d.t, "the daemon listens", func() bool {
		conn, err := net.Dial("tcp", d.address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// kill is kill -9.
func (d *syslogd) kill() {
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
}

// lines are what the daemon wrote in all its runs. A line that a kill cut off is one of
// them.
func (d *syslogd) lines(kind string) []string {
	d.t.Helper()
	var all []string
	for i := range d.runs {
		text, err := os.ReadFile(filepath.Join(d.folder, fmt.Sprintf("%s-%d.log", kind, i)))
		if err != nil && !os.IsNotExist(err) {
			d.t.Fatal(err)
		}
		all = append(all, strings.Split(string(text), "\n")...)
	}
	return all
}

// realDocs are documents of which each fiftieth has 100 kB.
func realDocs(first, n int) []string {
	docs := make([]string, n)
	for i := range docs {
		pad := strings.Repeat("é]\\\\\\\" ", 20)
		if (first+i)%50 == 7 {
			pad = strings.Repeat("0123456789", 10_000)
		}
		docs[i] = fmt.Sprintf(`{"n":%d,"pad":"%s"}`, first+i, pad)
	}
	return docs
}

// realEvent is one whose structured data needs escaping.
func realEvent(n int, doc string) *Event {
	e := event(n, doc)
	e.Type, e.Account = "cloudtrail.s3", `a"b\c]d é`
	return e
}

// survives streams events to a daemon that is killed twice meanwhile, and expects each
// message to be in its files, byte by byte.
func survives(t *testing.T, d *syslogd, s Sink, message func(event []byte) string) {
	t.Helper()
	d.start()
	defer func() {
		d.kill()
		if t.Failed() {
			t.Logf("the daemon says:\n%s", d.said.String())
		}
	}()
	const senders, batches, size = 3, 20, 200
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var mu sync.Mutex
	want := map[string]bool{}
	done := make(chan struct{}, senders*batches)
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			for j := range batches {
				first := (i*batches + j) * size
				var data []byte
				var items []Item
				for k, doc := range realDocs(first, size) {
					e, start := realEvent(first+k, doc), len(data)
					data = s.Append(data, e)
					items = append(items, Item{ID: e.ID, Start: start, End: len(data)})
				}
				for pause := 10 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
					res := s.Deliver(ctx, NewBatch(data, items))
					if res.Verdict == Done && len(res.Items) == 0 {
						break
					}
					if ctx.Err() != nil || res.Verdict != Retry {
						t.Errorf("got %v: %v", res.Verdict, res.Err)
						return
					}
					<-time.After(pause)
				}
				mu.Lock()
				for _, item := range items {
					want[message(data[item.Start:item.End])] = true
				}
				mu.Unlock()
				done <- struct{}{}
			}
		})
	}
	for n := range senders * batches {
		select {
		case <-done:
		case <-ctx.Done():
			t.Fatalf("%d of %d batches", n, senders*batches)
		}
		if n == 15 || n == 35 {
			d.kill()
			d.start()
		}
	}
	wg.Wait()
	// Also what was confirmed last must not be lost with the daemon.
	d.kill()
	d.start()
	sent := len(want)
	eventually(t, "all that was lost is sent again", func() bool { return !streamOf(s).owes() && !streamOf(s).busy() })
	must(t, s.Close())
	left := 0
	for range 100 {
		for _, line := range d.lines("raw") {
			delete(want, line)
		}
		if left = len(want); left == 0 {
			break
		}
		<-time.After(100 * time.Millisecond)
	}
	if left > 0 {
		shown := 0
		for m := range want {
			if shown++; shown <= 3 {
				t.Errorf("missing: %.300q", m)
			}
		}
		t.Errorf("%d of %d messages are not there", left, sent)
	}
	t.Logf("%d messages, %d lines in %d runs", sent, len(d.lines("raw"))-d.runs, d.runs)
}

func streamOf(s Sink) *stream {
	switch s := s.(type) {
	case *syslogSink:
		return s.stream
	case *devoSink:
		return s.stream
	}
	return nil
}

// busy tells whether something is being sent again.
func (s *stream) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resending
}

// openReal opens a syslog sink towards a daemon.
func openReal(t *testing.T, d *syslogd, change func(*SyslogConfig)) Sink {
	t.Helper()
	cfg := defaultSyslog()
	cfg.Address, cfg.TLS = d.address, d.trust.client()
	// The daemon has so much in memory when it is killed.
	cfg.Unconfirmed.Bytes *= 8
	change(&cfg)
	s, err := openSyslog(t.Context(), cfg, Deps{Destination: "real"})
	must(t, err)
	return s
}

// covers: F-23, F-24, SYS-16, peers section 3 pain 23
func TestSyslogReal(t *testing.T) {
	t.Parallel() // it waits for daemons
	tests := []struct {
		name   string
		daemon func(t *testing.T) *syslogd
		change func(*SyslogConfig)
	}{
		{"rsyslog/octets", rsyslogd, func(*SyslogConfig) {}},
		{"rsyslog/lines", rsyslogd, func(c *SyslogConfig) { c.Framing = LineFeed }},
		{"rsyslog/old form", rsyslogd, func(c *SyslogConfig) { c.Protocol, c.Format = RFC3164, Envelope }},
		{"syslog-ng/octets", func(t *testing.T) *syslogd { return syslogNG(t, OctetCounting) }, func(*SyslogConfig) {}},
		{"syslog-ng/lines", func(t *testing.T) *syslogd { return syslogNG(t, LineFeed) }, func(c *SyslogConfig) { c.Framing = LineFeed }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := tt.daemon(t)
			s := openReal(t, d, tt.change)
			survives(t, d, s, func(event []byte) string {
				if s.(*syslogSink).cfg.Framing == LineFeed {
					return strings.TrimSuffix(string(event), "\n")
				}
				_, text, _ := strings.Cut(string(event), " ")
				return text
			})
		})
	}
}

// What a parser of RFC 5424 makes of the structured data is what was put in.
// covers: F-23
func TestSyslogRealParsed(t *testing.T) {
	d := syslogNG(t, OctetCounting)
	d.start()
	defer d.kill()
	s := openReal(t, d, func(*SyslogConfig) {})
	e := realEvent(1, `{"n":1}`)
	data := s.Append(nil, e)
	mustDeliver(t, s, NewBatch(data, []Item{{ID: e.ID, End: len(data)}}))
	must(t, s.Close())
	var text string
	eventually(t, "the message is there", func() bool {
		text = d.lines("parsed")[0]
		return text != ""
	})
	var got map[string]any
	must(t, json.Unmarshal([]byte(text), &got))
	sd, _ := got["_SDATA"].(map[string]any)
	own, _ := sd["penstock@32473"].(map[string]any)
	if own["id"] != e.ID.String() || own["account"] != e.Account || own["type"] != e.Type || own["region"] != e.Region {
		t.Errorf("structured data %v in %s", own, text)
	}
	if got["PROGRAM"] != "penstock" || got["MSGID"] != "cloudtrail.s3" || got["FACILITY"] != "local0" || got["PRIORITY"] != "info" || got["MESSAGE"] != `{"n":1}` {
		t.Errorf("got %s", text)
	}
}

// Both daemons let nobody in without a certificate, each in its own way. Nothing may
// count as confirmed then.
func TestSyslogRealRefusal(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) *syslogd{
		"rsyslog": rsyslogd, "syslog-ng": func(t *testing.T) *syslogd { return syslogNG(t, OctetCounting) },
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t)
			d.start()
			defer d.kill()
			other := newAuthority(t)
			other.issue(t, "client")
			for what, certificate := range map[string]TLSConfig{
				"none": {}, "another authority's": {CertFile: other.path("client.pem"), KeyFile: other.path("client.key")},
			} {
				s := openReal(t, d, func(c *SyslogConfig) {
					certificate.CAFile = c.TLS.CAFile
					c.TLS = certificate
				})
				for range 3 {
					res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 3)...))
					if res.Verdict != Retry && res.Verdict != Stop {
						t.Errorf("certificate %s: got %v: %v", what, res.Verdict, res.Err)
					}
					t.Logf("certificate %s: %v: %v", what, res.Verdict, res.Err)
				}
				must(t, s.Close())
			}
			if got := strings.Join(d.lines("raw"), ""); got != "" {
				t.Errorf("the daemon took %q", got)
			}
		})
	}
}
