package sinks

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/probe"
)

// otlpCollector is a real OpenTelemetry Collector that writes logs to a file.
type otlpCollector struct {
	grpc, http string
	file       string
	stop       func()
}

// startOTLPCollector runs one with TLS on both ports, and waits until it listens.
func startOTLPCollector(t *testing.T, folder, grpcAddr, httpAddr string) *otlpCollector {
	t.Helper()
	c := &otlpCollector{grpc: grpcAddr, http: httpAddr, file: filepath.Join(folder, "logs.jsonl")}
	// max_recv_msg_size_mib and max_request_body_size are small, to have a limit to meet.
	text := fmt.Sprintf(`
receivers:
  otlp:
    protocols:
      grpc: {endpoint: %q, max_recv_msg_size_mib: 1, tls: {cert_file: %q, key_file: %q}}
      http: {endpoint: %q, max_request_body_size: 1048576, tls: {cert_file: %q, key_file: %q}}
exporters:
  file: {path: %q, flush_interval: 50ms, append: true}
service:
  telemetry: {metrics: {level: none}, logs: {level: error}}
  pipelines: {logs: {receivers: [otlp], exporters: [file]}}
`, c.grpc, folder+"/cert.pem", folder+"/key.pem", c.http, folder+"/cert.pem", folder+"/key.pem", c.file)
	path := filepath.Join(folder, "collector.yaml")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), receiver(t, "otelcol"), "--config", "file:"+path)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.Discard, &said
	must(t, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	c.stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for _, address := range []string{c.grpc, c.http} {
		for {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
			if err == nil {
				_ = conn.Close()
				break
			}
			select {
			case <-tick.C:
			case <-ended:
				t.Fatalf("the collector ended: %s", said.String())
			case <-t.Context().Done():
				c.stop()
				t.Fatal(t.Context().Err())
			}
		}
	}
	return c
}

// records are what the collector has written to its file, once it was stopped.
func (c *otlpCollector) records(t *testing.T) []*logspb.LogRecord {
	t.Helper()
	data, err := os.ReadFile(c.file)
	must(t, err)
	var out []*logspb.LogRecord
	for line := range bytes.Lines(data) {
		var logs logspb.LogsData
		must(t, protojson.Unmarshal(line, &logs))
		for _, r := range logs.GetResourceLogs() {
			for _, s := range r.GetScopeLogs() {
				out = append(out, s.GetLogRecords()...)
			}
		}
	}
	return out
}

func TestOTLPCollector(t *testing.T) {
	// covers: F-27
	receiver(t, "otelcol")
	for _, protocol := range []OTLPProtocol{OTLPGRPC, OTLPHTTP} {
		for _, body := range []OTLPBody{OTLPString, OTLPMap} {
			t.Run(fmt.Sprintf("%s/%s", protocol, body), func(t *testing.T) {
				folder := t.TempDir()
				serverCertificate(t, filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem"))
				c := startOTLPCollector(t, folder, freeAddress(t), freeAddress(t))
				cfg := defaultOTLP()
				cfg.Protocol, cfg.Body, cfg.Gzip = protocol, body, body == OTLPMap
				cfg.Endpoint = "https://" + map[OTLPProtocol]string{OTLPGRPC: c.grpc, OTLPHTTP: c.http}[protocol]
				cfg.TLS.CAFile = filepath.Join(folder, "cert.pem")
				cfg.Headers = map[string]config.Secret{"x-key": config.NewSecret("k")}
				s, err := openOTLP(t.Context(), cfg, Deps{Destination: "otel"})
				must(t, err)
				defer s.Close()
				for _, f := range cfg.Probe(t.Context()) {
					if f.Level != probe.OK {
						t.Errorf("probe: %+v", f)
					}
				}
				mustDeliver(t, s, batchOf(s, 0, plain(0, 500)...))
				if body == OTLPString {
					// Over the limit of the receiver: said as such, so that halves are tried.
					large := batchOf(s, 500, plain(500, 6000)...)
					if res := s.Deliver(t.Context(), large); res.Verdict != TooLarge {
						t.Errorf("got %v: %v", res.Verdict, res.Err)
					}
				}

				c.stop() // an outage, and back with what was written
				b := batchOf(s, 500, plain(500, 500)...)
				if res := s.Deliver(t.Context(), b); res.Verdict != Retry {
					t.Errorf("got %v: %v", res.Verdict, res.Err)
				}
				c = startOTLPCollector(t, folder, c.grpc, c.http)
				mustDeliver(t, s, b)
				c.stop()

				var lines []string
				for _, r := range c.records(t) {
					if body == OTLPMap {
						text, err := json.Marshal(otlpJSON(r.GetBody()))
						must(t, err)
						r.Body = &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: string(text)}}
					}
					lines = append(lines, otlpEnvelope(r))
				}
				slices.Sort(lines)
				if len(slices.Compact(slices.Clone(lines))) != len(lines) {
					t.Error("records came twice")
				}
				if w := (&world{received: func() []string { return lines }}); !strings.Contains(lines[0], secretPayload) {
					t.Errorf("line %q", lines[0])
				} else {
					expect(t, w, 1000)
				}
			})
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

// serverCertificate writes a certificate for this host that vouches for itself.
func serverCertificate(t *testing.T, certPath, keyPath string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "receiver"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	must(t, err)
	must(t, os.WriteFile(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
}
